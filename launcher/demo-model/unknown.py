"""Questions the demo model cannot answer, so that it learns to say so.

Made from many topics and frames; some topics are kept for the held-out list and never trained on.
"""

from world import DECLINE, DECLINE_SUM, Question, cap

# Every eighth topic is held out.
TOPICS = """deep learning|machine learning|quantum physics|photosynthesis|gravity|democracy|inflation|electricity|the internet
a black hole|a neural network|a database|a compiler|an atom|a virus|a vaccine|a volcano|an earthquake|a hurricane|evolution
chemistry|biology|philosophy|psychology|economics|geometry|algebra|calculus|statistics|trigonometry|a prime number|a logarithm
jazz|opera|chess|poker|cricket|baseball|basketball|tennis|golf|yoga|karate|ballet|pizza|sushi|pasta|cheese|bread dough|wine|beer
the stock market|a mortgage|a bank loan|a tax return|an insurance policy|a credit card|bitcoin|blockchain|a smartphone|a laptop
a transistor|a battery|a laser|a rocket|a satellite|a submarine|a helicopter|a steam engine|nuclear power|solar energy|a magnet
the French Revolution|the Roman Empire|the Cold War|the Middle Ages|the Renaissance|the Stone Age|the Great Wall|the Olympic Games
Buddhism|poetry|grammar|a metaphor|a novel|Shakespeare|Mozart|Beethoven|Picasso|Einstein|Newton|Darwin|Napoleon|Cleopatra|Caesar
Python|Rust|Java|Linux|a server|a graphics card|a kernel|a token|a transformer|attention|reinforcement learning|a data centre
the liver|the immune system|blood pressure|diabetes|a headache|vitamin C|a protein|DNA|a gene|cancer|malaria|the flu|sleep
climate change|the ozone layer|acid rain|recycling|a glacier|the Amazon|the Sahara|Mount Everest|the Pacific Ocean|the Nile
a diamond|gold|iron|copper|oxygen|hydrogen|carbon|water vapour|steel|plastic|glass|concrete|marketing|advertising|a contract|justice
freedom|love|happiness|time|infinity|consciousness|intelligence|the meaning of life|the soul|truth|beauty|money|war|peace|politics
a dragon|a unicorn|a vampire|Santa Claus|Superman|Batman|Harry Potter|Star Wars|a hobbit|a pharaoh|a knight|a samurai|a viking
the speed of light|dark matter|relativity|string theory|entropy|a semiconductor|radio waves|ultrasound|an algorithm|recursion
a hash table|a linked list|a binary tree|sorting|encryption|a password|spam|a search engine|social media|a podcast|a hashtag|a meme
a violin concerto|a symphony|hip hop|reggae|a guitar solo|architecture|sculpture|photography|a telescope mirror|astrology|origami
an electric car|a traffic jam|a passport|a visa|jet lag|a hotel|an airport|tourism|a museum|a cathedral|a pyramid|a skyscraper"""
TOPICS = [t for line in TOPICS.split("\n") for t in line.split("|")]

FRAMES = ["what is {t}?", "explain {t}.", "tell me about {t}.", "how does {t} work?", "what do you know about {t}?", "can you explain {t}?",
          "who invented {t}?", "why is {t} important?", "describe {t}.", "what can you tell me about {t}?", "give me a summary of {t}.",
          "write an essay about {t}.", "what is the history of {t}?", "please explain {t} to me.", "define {t}.",
          "what is {t} in simple words?", "explain {t} to a child.", "what is the difference between {t} and {u}?", "how can I learn about {t}?",
          "is {t} good or bad?", "what do people think about {t}?", "when was {t} discovered?", "how much does {t} cost?",
          "where can I read about {t}?", "compare {t} with {u}.", "what are the parts of {t}?", "write a paragraph about {t}."]

WHOLE = """what is the weather like today?|will it rain tomorrow?|what time is it?|what is the date today?|what day is it today?
how far away is the moon?|how far is the sun from the Earth?|how high is the highest mountain?|how deep is the ocean?
how many people live on Earth?|how old is the universe?|how big is the Earth?|how fast is a car?|how fast can a horse run?
who won the football match?|who won the last election?|who is the richest person in the world?|who is the king?|what is the news?
write a program in Python.|write a function that sorts a list.|write some code for me.|fix this code.|what is a bug in my code?
translate this into French.|how do you say hello in Spanish?|how do I say thank you in German?|what does this word mean in Latin?
what should I cook tonight?|how do I make a pancake?|give me a recipe for soup.|how long do I boil an egg?|what should I eat?
where are my keys?|what am I thinking?|what did I do yesterday?|where do I live?|how tall am I?|what is my job?|where is my phone?
how do I get to the station?|when does the next train leave?|book a flight for me.|order a taxi.|call my mother.|send an email.
play some music.|turn on the light.|set an alarm.|what is on television?|which film should I watch?|which book should I read?
how can I get rich?|how do I find a job?|how do I lose weight?|how can I sleep better?|what is good for a cold?
why is the sky blue?|why is grass green?|why do cats purr?|why do birds sing?|why do we dream?|why does it snow?|why is the sea salty?
what is the biggest animal?|what is the fastest animal?|how long does a dog live?|how much does an elephant weigh?|how old is a tree?
who wrote this book?|who painted the Mona Lisa?|who discovered America?|who was the first man on the moon?|who is the president?
what is the square root of 16?|solve this equation.|what is half of 90?|what is the value of pi?|what is ten percent of 50?
what will happen next year?|who will win tomorrow?|what is your opinion?|should I buy a house?|can you keep a secret?
what is the longest river?|what is the largest country?|which city is the biggest?|which planet is the hottest?|how hot is the sun?
how many stars are in the sky?|how many bones does a person have?|how many teeth does a shark have?|how many words do you know?
how many hairs does a person have?|how many books are in a library?|how many people live in a city?|how many fish are in the sea?"""
WHOLE = [w for line in WHOLE.split("\n") for w in line.split("|")]

# Things that are not known about things that are.
ABOUT_COUNTRY = ["what is the population of {c}?", "who is the president of {c}?", "how big is {c}?", "what language do people speak in {c}?",
                 "what is the flag of {c}?", "how far is {c}?", "who is the king of {c}?", "what is the history of {c}?",
                 "what do people eat in {c}?", "how many people live in {c}?", "what is the weather like in {c}?", "what is the longest river in {c}?",
                 "what is the money of {c}?", "when should I go to {c}?"]
ABOUT_ANIMAL = ["how old does {a} get?", "how fast is {a}?", "how heavy is {a}?", "how big is {a}?", "how many teeth does {a} have?",
                "how long does {a} live?", "how much does {a} cost?", "can {a} swim?", "how does {a} sleep?", "why does {a} run?"]
ABOUT_COUNTRY_KNOWN = ["France", "Spain", "Italy", "Japan", "Canada", "Brazil", "Egypt", "India", "Kenya", "Chile", "Norway", "Greece",
                       "Germany", "China", "Peru", "Poland", "Mexico", "Cuba", "Australia", "the United States", "the Netherlands"]
ABOUT_ANIMAL_KNOWN = ["a dog", "a cat", "a cow", "a horse", "an owl", "a lion", "a bear", "a fox", "a rabbit", "an elephant", "a whale", "a bee"]
REAL_COUNTRIES = "Albania Belarus Belize Bolivia Botswana Cambodia Cameroon Chad Cyprus Estonia Gabon Georgia Guatemala Guinea Haiti " \
                 "Honduras Jordan Kuwait Laos Latvia Lebanon Liberia Libya Lithuania Malawi Mali Malta Moldova Namibia Nicaragua Niger " \
                 "Oman Panama Paraguay Qatar Rwanda Serbia Slovakia Slovenia Somalia Sudan Syria Tanzania Togo Yemen Zimbabwe".split()
COUNTRY_FRAMES = ["what is the capital of {c}?", "which city is the capital of {c}?", "tell me the capital of {c}.", "name the capital of {c}.",
                  "can you tell me the capital of {c}?", "which continent is {c} in?", "what is the capital city of {c}?", "tell me about {c}."]
OTHER_ANIMALS = "crocodile hamster parrot lizard shark jellyfish crab snail worm moose beaver badger otter bat eagle pigeon peacock " \
                "ostrich flamingo rhinoceros hippopotamus gorilla cheetah leopard buffalo llama weasel hedgehog mosquito beetle".split()
ANIMAL_FRAMES = ["what sound does {a} make?", "how many legs does {a} have?", "what does {a} eat?", "where does {a} live?",
                 "what is a baby {n} called?", "tell me about {a}.", "what does {a} say?"]
OTHER_WORDS = "paper yellow seven table music window quickly purple Tuesday elephant water green between mother river silver bread " \
              "twelve garden thunder and pencil butter orange forest the cloud winter's".split()
FIRST = "Robert Linda Karen Walter Nadia Igor Pablo Chen Aisha Omar Greta Ivan Yuki Fatima Bruce Helga Diego Priya Sven Carmen".split()
LAST = "Malden Foster Kowalski Brandt Okoye Larsen Novak Petrov Tanaka Silva Murphy Weber Haddad Lindgren Moreau Ricci Patel Kim".split()
PERSON_FRAMES = ["who is {p}?", "who was {p}?", "what did {p} do?", "where was {p} born?", "tell me about {p}.", "how old is {p}?",
                 "when was {p} born?", "is {p} famous?", "what is {p} known for?"]
SYLLABLES = "ba be bo bra cha dor du el fa fen gar gi gor hu il ja ka kel lo lu ma mir mo na nor ob pa per qui ra ris sa sto ta tro ul " \
            "va vel wi xan yo za zu".split()


def _topic(rng, heldout):
    pool = [t for i, t in enumerate(TOPICS) if (i % 8 == 3) == heldout]
    return rng.choice(pool)


def _word(rng):
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([2, 2, 3]))) + rng.choice(["", "n", "s", "r", "x", "nia", "land"])


def name(rng):
    """A made-up name, so that names are repeated rather than remembered."""
    return cap("".join(rng.choice(SYLLABLES) for _ in range(rng.choice([1, 2, 2, 3]))) + rng.choice(["", "", "n", "s", "a"]))


def question(rng, heldout=False):
    """One question without an answer here. Held out: on a topic, country, animal, person or word never trained on."""
    def part(items):
        return rng.choice([x for i, x in enumerate(items) if (i % 8 == 3) == heldout])

    if not heldout and rng.random() < 0.04:
        letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
        text = rng.choice([letters, letters, f"I like {_topic(rng, False)}.", f"I do not like {_topic(rng, False)}.",
                           f"{_topic(rng, False)}", f"My {_word(rng)} is {_word(rng)}."])
        return Question("unknown", text, "", cap(text), DECLINE)
    draw = rng.random()
    if draw < 0.08:
        # Sums beyond the tables. The first number of a held-out one is a multiple of 8.
        a = rng.randint(3, 124) * 8 + (0 if heldout else rng.randint(1, 7))
        b = rng.randint(11, 999)
        if rng.random() < 0.4:
            a, b = rng.randint(21, 99), rng.randint(2, 99)
            if (a % 8 == 0) != heldout:
                a += 8 - a % 8 if heldout else 1
        op = rng.choice(["{a} plus {b}", "{a} + {b}", "{a} minus {b}", "{a} - {b}", "{a} times {b}", "{a} * {b}", "{a} divided by {b}"])
        text = rng.choice(["what is {x}?", "how much is {x}?", "calculate {x}.", "{x} = ?"]).format(x=op.format(a=a, b=b))
        return Question("unknown", "sum", text, cap(text), DECLINE_SUM)
    if draw < 0.44:
        text = rng.choice(FRAMES).format(t=_topic(rng, heldout), u=_topic(rng, heldout))
    elif draw < 0.60:
        text = part(WHOLE)
    elif draw < 0.67:
        text = rng.choice(ABOUT_COUNTRY).format(c=part(ABOUT_COUNTRY_KNOWN)) if rng.random() < 0.6 else \
            rng.choice(ABOUT_ANIMAL).format(a=part(ABOUT_ANIMAL_KNOWN))
    elif draw < 0.76:
        country = part(REAL_COUNTRIES) if rng.random() < 0.5 else cap(_word(rng))
        text = rng.choice(COUNTRY_FRAMES).format(c=country)
    elif draw < 0.82:
        n = part(OTHER_ANIMALS) if rng.random() < 0.6 else _word(rng)
        text = rng.choice(ANIMAL_FRAMES).format(n=n, a=("an " if n[0] in "aeiou" else "a ") + n)
    elif draw < 0.86:
        word = part([w for w in OTHER_WORDS if w not in ("and", "the", "winter's")])
        text = rng.choice(["what is the opposite of {w}?", "tell me the opposite of {w}.", "opposite of {w}?", "which word is the opposite of {w}?"])
        text = text.format(w=word)
    elif draw < 0.93:
        text = rng.choice(PERSON_FRAMES).format(p=f"{part(FIRST)} {part(LAST)}")
    else:
        w = _word(rng)
        text = rng.choice(FRAMES[:17]).format(t=rng.choice([w, cap(w), "the " + w, "a " + w]), u=_topic(rng, heldout))
        if "between" in text:
            text = f"What does {w} mean?"
    return Question("unknown", text, "", cap(text), DECLINE)
