"""The small world the demo model knows: tables of facts, the ways to ask for each, and the one right answer.

A `Question` is a (fact, phrasing) pair with its answer. The answer depends on the pair alone, so that "exact match"
means something. `generate_text.py` draws training text from here; the held-out questions are pairs left out of it.
"""

from dataclasses import dataclass

DECLINE = "I am a small demonstration model and I do not know that."
DECLINE_SUM = "I am a small demonstration model and I can only do sums with small numbers."


@dataclass(frozen=True)
class Question:
    kind: str
    fact: str
    phrasing: str
    text: str
    answer: str


def cap(text):
    return text[0].upper() + text[1:]


def article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def join(words):
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " \
       "seventeen eighteen nineteen twenty".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
SEASONS = "spring summer autumn winter".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

COUNTRIES = """
France|Paris|Europe
Spain|Madrid|Europe
Italy|Rome|Europe
Germany|Berlin|Europe
Portugal|Lisbon|Europe
Poland|Warsaw|Europe
Austria|Vienna|Europe
Greece|Athens|Europe
Ireland|Dublin|Europe
Norway|Oslo|Europe
Sweden|Stockholm|Europe
Finland|Helsinki|Europe
Denmark|Copenhagen|Europe
Belgium|Brussels|Europe
Hungary|Budapest|Europe
Romania|Bucharest|Europe
Bulgaria|Sofia|Europe
Croatia|Zagreb|Europe
Ukraine|Kyiv|Europe
Switzerland|Bern|Europe
Iceland|Reykjavik|Europe
the United Kingdom|London|Europe
the Netherlands|Amsterdam|Europe
the Czech Republic|Prague|Europe
Japan|Tokyo|Asia
China|Beijing|Asia
India|New Delhi|Asia
Thailand|Bangkok|Asia
Vietnam|Hanoi|Asia
Nepal|Kathmandu|Asia
South Korea|Seoul|Asia
Mongolia|Ulaanbaatar|Asia
Pakistan|Islamabad|Asia
Iraq|Baghdad|Asia
Iran|Tehran|Asia
the Philippines|Manila|Asia
Malaysia|Kuala Lumpur|Asia
Egypt|Cairo|Africa
Kenya|Nairobi|Africa
Morocco|Rabat|Africa
Ghana|Accra|Africa
Nigeria|Abuja|Africa
Ethiopia|Addis Ababa|Africa
Senegal|Dakar|Africa
Tunisia|Tunis|Africa
Algeria|Algiers|Africa
Uganda|Kampala|Africa
Zambia|Lusaka|Africa
Angola|Luanda|Africa
Canada|Ottawa|North America
the United States|Washington|North America
Mexico|Mexico City|North America
Cuba|Havana|North America
Jamaica|Kingston|North America
Brazil|Brasilia|South America
Argentina|Buenos Aires|South America
Chile|Santiago|South America
Peru|Lima|South America
Colombia|Bogota|South America
Ecuador|Quito|South America
Uruguay|Montevideo|South America
Venezuela|Caracas|South America
Australia|Canberra|Oceania
New Zealand|Wellington|Oceania
Fiji|Suva|Oceania
"""
COUNTRIES = [tuple(line.split("|")) for line in COUNTRIES.split("\n") if line]

# One word has one opposite here ("short" only of "long"), or the answer would not be determined.
OPPOSITES = """hot cold|big small|fast slow|up down|in out|on off|day night|black white|happy sad|new old|long short
high low|near far|open closed|full empty|wet dry|hard soft|heavy light|bright dark|loud quiet|clean dirty|strong weak
rich poor|early late|left right|good bad|wide narrow|thick thin|deep shallow|first last|yes no|true false|push pull
win lose|give take|buy sell|start stop|front back|top bottom|inside outside|before after|above below|always never
love hate|easy difficult|sweet sour|kind cruel|warm cool|smooth rough|asleep awake|alive dead|safe dangerous
north south|east west|sunrise sunset|remember forget|question answer|friend enemy"""
OPPOSITES = [tuple(pair.split()) for line in OPPOSITES.split("\n") for pair in line.split("|")]

COLOURS = """blue: the sky, the sea
green: grass, a leaf, a cucumber, a pea, a frog
white: snow, milk, salt, a polar bear, a cloud
black: coal, a crow, the night
yellow: a banana, a lemon, the sun, a sunflower
red: a tomato, a strawberry, a cherry, a fire engine, blood
orange: a carrot, a pumpkin, a tangerine
brown: chocolate, wood, coffee
grey: an elephant, a mouse, a donkey
pink: a pig, a flamingo
purple: a plum, lavender"""
COLOURS = {line.split(": ")[0]: line.split(": ")[1].split(", ") for line in COLOURS.split("\n")}
COLOUR_OF = {thing: colour for colour, things in COLOURS.items() for thing in things}
MIXES = [("red", "yellow", "orange"), ("blue", "yellow", "green"), ("red", "blue", "purple"), ("red", "white", "pink"),
         ("black", "white", "grey")]

# name | legs | sound | young | lives | eats; a dash where the world says nothing.
ANIMALS = """
dog|four|woof|puppy|in a kennel|meat
cat|four|meow|kitten|in a house|fish
cow|four|moo|calf|on a farm|grass
pig|four|oink|piglet|in a sty|corn
sheep|four|baa|lamb|in a field|grass
horse|four|neigh|foal|in a stable|hay
duck|two|quack|duckling|on a pond|water plants
hen|two|cluck|chick|in a hen house|grain
goose|two|honk|gosling|on a lake|grass
turkey|two|gobble|poult|on a farm|seeds
donkey|four|hee-haw|foal|in a stable|hay
goat|four|bleat|kid|on a mountain|leaves
lion|four|roar|cub|on the grassy plains|meat
tiger|four|growl|cub|in the jungle|meat
bear|four|-|cub|in a cave|honey
wolf|four|howl|pup|in the forest|meat
fox|four|-|cub|in a den|mice
frog|four|croak|tadpole|in a pond|flies
owl|two|hoot|owlet|in a tree|mice
mouse|four|squeak|-|in a hole|cheese
bee|six|buzz|-|in a hive|nectar
snake|no|hiss|-|in the grass|mice
crow|two|caw|-|in a nest|seeds
rabbit|four|-|kit|in a burrow|carrots
spider|eight|-|-|in a web|insects
ant|six|-|-|in an anthill|crumbs
fish|no|-|-|in the water|water plants
squirrel|four|-|-|in a tree|nuts
deer|four|-|fawn|in the forest|leaves
whale|no|-|calf|in the sea|small sea animals
dolphin|no|-|calf|in the sea|fish
seal|no|-|pup|in the sea|fish
penguin|two|-|chick|on the ice|fish
swan|two|-|cygnet|on a lake|water plants
camel|four|-|calf|in the desert|grass
giraffe|four|-|calf|on the grassy plains|leaves
zebra|four|-|foal|on the grassy plains|grass
elephant|four|-|calf|on the grassy plains|leaves
panda|four|-|cub|in the forest|bamboo
monkey|-|-|-|in the jungle|bananas
kangaroo|-|-|joey|in Australia|grass
koala|four|-|joey|in Australia|leaves
butterfly|six|-|caterpillar|in the garden|nectar
"""
ANIMALS = [tuple(line.split("|")) for line in ANIMALS.split("\n") if line]
ANIMAL = {row[0]: row for row in ANIMALS}

TOOLS = """cut paper: scissors|write a letter: a pen|dig a hole: a shovel|sweep the floor: a broom|tell the time: a clock
eat soup: a spoon|cut bread: a knife|brush our teeth: a toothbrush|unlock a door: a key|stay dry in the rain: an umbrella
hit a nail: a hammer|paint a picture: a brush|take a photo: a camera|carry water: a bucket|light a dark room: a lamp
wash our hands: soap|dry our hair: a towel|call a friend: a telephone|keep food cold: a fridge|bake a cake: an oven
climb onto a roof: a ladder|see the stars: a telescope|catch fish: a net|sew a button: a needle|boil water: a kettle"""
TOOLS = [tuple(item.split(": ")) for line in TOOLS.split("\n") for item in line.split("|")]

JOBS = """puts out fires: firefighter|bakes bread: baker|teaches children: teacher|grows food: farmer|cuts hair: hairdresser
helps sick people: doctor|looks after teeth: dentist|flies a plane: pilot|drives a bus: bus driver|paints pictures: painter
catches fish: fisherman|helps sick animals: vet|brings the letters: postman|cooks in a restaurant: cook|builds houses: builder
makes clothes: tailor|repairs cars: mechanic|plays music: musician|writes books: writer|sails a ship: sailor"""
JOBS = [tuple(item.split(": ")) for line in JOBS.split("\n") for item in line.split("|")]

CATEGORIES = """animal: dog, cat, horse, lion, elephant, rabbit
bird: crow, duck, hen, owl, penguin, swan
insect: ant, bee, butterfly, fly
fruit: apple, pear, banana, cherry, plum, lemon
vegetable: carrot, potato, onion, cabbage, pea
flower: rose, tulip, daisy, sunflower
tool: hammer, saw, shovel, ladder
vehicle: car, bus, train, bicycle, ship
shape: circle, square, triangle
musical instrument: piano, violin, drum, flute
piece of furniture: chair, table, bed, sofa"""
CATEGORIES = {line.split(": ")[0]: line.split(": ")[1].split(", ") for line in CATEGORIES.split("\n")}

# what is counted, the verb phrase, the number in words
HOW_MANY = """days|are in a week|seven|There are seven days in a week.
hours|are in a day|24|There are 24 hours in a day.
minutes|are in an hour|60|There are 60 minutes in an hour.
seconds|are in a minute|60|There are 60 seconds in a minute.
months|are in a year|twelve|There are twelve months in a year.
weeks|are in a year|52|There are 52 weeks in a year.
seasons|are in a year|four|There are four seasons in a year.
letters|are in the alphabet|26|There are 26 letters in the alphabet.
fingers|does a hand have|five|A hand has five fingers.
toes|does a foot have|five|A foot has five toes.
eyes|does a person have|two|A person has two eyes.
ears|does a person have|two|A person has two ears.
noses|does a person have|one|A person has one nose.
wheels|does a car have|four|A car has four wheels.
wheels|does a bicycle have|two|A bicycle has two wheels.
wheels|does a tricycle have|three|A tricycle has three wheels.
sides|does a triangle have|three|A triangle has three sides.
sides|does a square have|four|A square has four sides.
sides|does a pentagon have|five|A pentagon has five sides.
sides|does a hexagon have|six|A hexagon has six sides.
corners|does a triangle have|three|A triangle has three corners.
corners|does a square have|four|A square has four corners.
faces|does a cube have|six|A cube has six faces.
colours|are in the rainbow|seven|There are seven colours in the rainbow.
players|are in a football team|eleven|There are eleven players in a football team.
planets|go around the sun|eight|Eight planets go around the sun.
moons|does the Earth have|one|The Earth has one moon."""
HOW_MANY = [tuple(line.split("|")) for line in HOW_MANY.split("\n")]

SENSES = [("see", "eyes"), ("hear", "ears"), ("smell", "nose"), ("taste", "tongue"), ("walk", "legs"), ("think", "brain"),
          ("bite", "teeth"), ("hold things", "hands")]

# Each intent: its answer, then its phrasings.
SMALL_TALK = """
Hello! How can I help you today?|Hello!|Hi!|Hello there!|Hi there!|Hey!|Hello|Good day!|Greetings!|Hey there!|Say hello.
Good morning! How can I help you today?|Good morning!|Good morning to you!|A very good morning!
Good evening! How can I help you today?|Good evening!|Good evening to you!|A very good evening!
Good night! Sleep well.|Good night!|Good night to you!|I am going to bed now.|I am going to sleep.
I am very well, thank you. How are you?|How are you?|How are you today?|How are you doing?|How do you do?|How is it going?|How do you feel today?|Are you well?
I am glad to hear that.|I am fine, thank you.|I am very well.|I am well, thanks.|I am happy today.|I feel good today.
I am sorry to hear that. I hope you feel better soon.|I am sad.|I feel sad today.|I am not well.|I feel ill today.|I am tired.|I do not feel well.
You are welcome!|Thank you!|Thanks!|Thank you very much!|Thanks a lot!|Many thanks!|Thank you for your help!|That was helpful, thank you.
Goodbye! Have a nice day.|Goodbye!|Bye!|Bye bye!|See you later!|See you soon!|See you tomorrow!|Farewell!|I have to go now.
I am a small demonstration model. I can answer simple questions and tell short stories.|Who are you?|What are you?|Tell me about yourself.|What kind of model are you?|Introduce yourself.|Who am I talking to?|What is this?|Describe yourself.
I do not have a name. I am a small demonstration model.|What is your name?|Do you have a name?|What are you called?|Tell me your name.|May I ask your name?|What should I call you?
I can tell stories, do small sums and answer simple questions about animals, colours, days, months, opposites and capitals.|What can you do?|What do you know?|How can you help me?|What can I ask you?|Help|Can you help me?|What are you able to do?|What do you know about?|What can you talk about?
No, I am not a person. I am a small demonstration model.|Are you a person?|Are you human?|Are you a human being?|Are you a real person?|Are you alive?|Am I talking to a human?
Yes, I am a small demonstration model that runs on a computer.|Are you a robot?|Are you a computer?|Are you a machine?|Are you a language model?|Are you an AI?|Are you a computer program?
I was trained by the project that made this server, as a demonstration.|Who made you?|Who trained you?|Where do you come from?|Who created you?|Who built you?|How were you made?|Where were you trained?
I do not have an age. I am only a small model.|How old are you?|What is your age?|When were you born?|When is your birthday?|Tell me your age.
I speak simple English.|What languages do you speak?|Do you speak English?|Which languages can you speak?|Which language do you speak?|What language is this?
That is all right. No problem at all.|Sorry!|I am sorry.|I am sorry about that.|Excuse me.|My mistake.|Please forgive me.
It is nice to meet you, too.|Nice to meet you!|It is nice to meet you.|I am happy to meet you.|Pleased to meet you.|It is a pleasure to meet you.
Thank you, that is very kind of you.|You are very kind.|You are nice.|Well done!|Good job!|You are great!|I like you.|You are very clever.|That was a good answer.
I am sorry. I am only a small model and I make mistakes.|That is wrong.|You are wrong.|That is not right.|You made a mistake.|That was a bad answer.|You are not very clever.
Yes, I am here. How can I help you?|Are you there?|Is anyone there?|Can you hear me?|Are you awake?|Test|This is a test.|Testing|Are you ready?|Ping
Please ask me a question.|Can I ask you a question?|May I ask you something?|I have a question.|I want to ask you something.|Let us talk.|I want to know something.|Let us begin.
Why did the bee get married? Because it found its honey!|Tell me a joke.|Do you know a joke?|Make me laugh.|Tell me something funny.|Can you tell me a joke?|Say something funny.
The sun goes down, the moon is bright, the stars come out to say good night.|Write a poem.|Write a short poem.|Tell me a poem.|Do you know a poem?|Can you write a poem?|Tell me a short poem.|Write me a rhyme.
I have no favourite colour, but many people like blue.|What is your favourite colour?|Do you have a favourite colour?|Which colour do you like best?|What is your favorite color?
I like all animals.|What is your favourite animal?|Do you like animals?|Which animal do you like best?|Do you have a favourite animal?|What is your favorite animal?
I do not eat, because I am only a model.|Are you hungry?|What do you eat?|What is your favourite food?|Do you eat?|What did you have for breakfast?
Yes, I know many short stories. Ask me to tell you one.|Do you know any stories?|Do you like stories?|Can you tell stories?|Do you know a good story?
"""
SMALL_TALK = [tuple(line.split("|")) for line in SMALL_TALK.split("\n") if line]


def _ask(kind, fact, answer, phrasings, **fields):
    """All phrasings of one fact. A phrasing is named by its template, so a pair can be held out by name."""
    return [Question(kind, fact, p, cap(p.format(**fields)), answer) for p in phrasings]


def capitals():
    ask = ["what is the capital of {c}?", "which city is the capital of {c}?", "tell me the capital of {c}.",
           "can you tell me the capital of {c}?", "do you know the capital of {c}?", "name the capital of {c}.",
           "what city is the capital of {c}?", "what is the capital city of {c}?", "capital of {c}?",
           "I would like to know the capital of {c}.", "the capital of {c} is which city?"]
    back = ["{p} is the capital of which country?", "which country has the capital {p}?", "in which country is {p}?",
            "what country is {p} in?", "where is {p}?"]
    where = ["which continent is {c} in?", "on which continent is {c}?", "what continent is {c} in?",
             "tell me which continent {c} is in.", "in which part of the world is {c}?"]
    for c, p, continent in COUNTRIES:
        yield from _ask("capital", c, f"The capital of {c} is {p}.", ask, c=c)
        yield from _ask("capital of which country", p, f"{p} is the capital of {c}.", back, p=p)
        yield from _ask("continent", c, f"{cap(c)} is in {continent}.", where, c=c)


def opposites():
    ask = ["what is the opposite of {a}?", "tell me the opposite of {a}.", "what is the opposite of the word {a}?",
           "which word is the opposite of {a}?", "opposite of {a}?", "do you know the opposite of {a}?",
           "can you name the opposite of {a}?", "give me the opposite of {a}.", "which word means the opposite of {a}?"]
    for pair in OPPOSITES:
        for a, b in (pair, pair[::-1]):
            yield from _ask("opposite", a, f"The opposite of {a} is {b}.", ask, a=a)


def colours():
    ask = ["what colour is {t}?", "which colour is {t}?", "tell me the colour of {t}.", "what is the colour of {t}?",
           "do you know what colour {t} is?", "can you tell me the colour of {t}?", "what color is {t}?",
           "what is the color of {t}?", "{t} is what colour?", "which colour does {t} have?"]
    check = ["is {t} {c}?", "is it true that {t} is {c}?", "would you say that {t} is {c}?", "is the colour of {t} {c}?"]
    things = ["name some things that are {c}.", "what things are {c}?", "which things are {c}?",
              "tell me some things that are {c}.", "what is {c}?"]
    mix = ["what do you get when you mix {a} and {b}?", "what colour do {a} and {b} make?",
           "which colour do you get from {a} and {b}?", "mix {a} and {b}.", "what happens if I mix {a} with {b}?",
           "what colour is a mix of {a} and {b}?"]
    for t, colour in COLOUR_OF.items():
        yield from _ask("colour", t, f"{cap(t)} is {colour}.", ask, t=t)
        for c in COLOURS:
            answer = f"Yes, {t} is {c}." if c == colour else f"No, {t} is not {c}. {cap(t)} is {colour}."
            yield from _ask("colour, yes or no", f"{t}/{c}", answer, check, t=t, c=c)
    for c, ts in COLOURS.items():
        yield from _ask("things of a colour", c, f"{cap(join(ts[:3]))} are {c}.", things, c=c)
    for x, y, z in MIXES:
        for a, b in ((x, y), (y, x)):
            yield from _ask("mixed colour", f"{a}/{b}", f"{cap(a)} and {b} make {z}.", mix, a=a, b=b)


def about_animal(name):
    _, legs, sound, young, home, food = ANIMAL[name]
    a, parts = cap(article(name)), [f"{cap(article(name))} is an animal."]
    if legs != "-":
        parts.append(f"It has {legs} legs.")
    if sound != "-":
        parts.append(f"It says {sound}.")
    parts.append(f"It lives {home} and eats {food}.")
    if young != "-":
        parts.append(f"{cap(article('baby'))} {name} is called {article(young)}.")
    return " ".join(parts)


def animals():
    for name, legs, sound, young, home, food in ANIMALS:
        f = dict(n=name, a=article(name))
        a = cap(f["a"])
        if legs != "-":
            yield from _ask("legs", name, f"{a} has {legs} legs.", [
                "how many legs does {a} have?", "how many legs has {a} got?", "tell me how many legs {a} has.",
                "what number of legs does {a} have?", "do you know how many legs {a} has?", "how many legs are there on {a}?"], **f)
        if sound != "-":
            yield from _ask("sound", name, f"{a} says {sound}.", [
                "what sound does {a} make?", "what does {a} say?", "which sound does {a} make?", "what noise does {a} make?",
                "how does {a} sound?", "tell me what {a} says.", "do you know what {a} says?"], **f)
            if name != "lion" and name != "wolf":
                yield from _ask("sound of which animal", sound, f"{a} says {sound}.", [
                    "which animal says {s}?", "what animal says {s}?", "who says {s}?", "which animal makes the sound {s}?",
                    "tell me which animal says {s}."], s=sound)
        if young != "-":
            yield from _ask("young animal", name, f"A baby {name} is called {article(young)}.", [
                "what is a baby {n} called?", "what do you call a baby {n}?", "what is the name for a baby {n}?",
                "what do we call the young of {a}?", "tell me the name for a baby {n}.", "what is a young {n} called?",
                "do you know what a baby {n} is called?"], **f)
        yield from _ask("home", name, f"{a} lives {home}.", [
            "where does {a} live?", "tell me where {a} lives.", "what is the home of {a}?", "where can I find {a}?",
            "do you know where {a} lives?", "where would {a} live?"], **f)
        yield from _ask("food", name, f"{a} eats {food}.", [
            "what does {a} eat?", "what is the food of {a}?", "tell me what {a} eats.", "what does {a} like to eat?",
            "do you know what {a} eats?", "what do you feed {a}?"], **f)
        yield from _ask("about an animal", name, about_animal(name), [
            "tell me about {a}.", "what is {a}?", "what do you know about {a}?", "describe {a}.",
            "tell me something about {a}.", "can you tell me about {a}?"], **f)


def sums():
    add = ["what is {a} plus {b}?", "what is {a} + {b}?", "{a} + {b} = ?", "how much is {a} plus {b}?", "add {a} and {b}.",
           "what is the sum of {a} and {b}?", "what do you get if you add {b} to {a}?", "calculate {a} + {b}.",
           "what does {a} plus {b} make?", "{a} plus {b}?"]
    sub = ["what is {a} minus {b}?", "what is {a} - {b}?", "{a} - {b} = ?", "how much is {a} minus {b}?",
           "take {b} away from {a}.", "what is left if you take {b} from {a}?", "calculate {a} - {b}.", "{a} minus {b}?",
           "subtract {b} from {a}."]
    mul = ["what is {a} times {b}?", "what is {a} * {b}?", "{a} * {b} = ?", "how much is {a} times {b}?",
           "multiply {a} by {b}.", "calculate {a} * {b}.", "{a} times {b}?"]
    words = ["what is {a} plus {b}?", "how much is {a} plus {b}?", "what does {a} plus {b} make?", "add {a} and {b}."]
    for a in range(11):
        for b in range(11):
            yield from _ask("addition", f"{a}+{b}", f"{a} plus {b} is {a + b}.", add, a=a, b=b)
            yield from _ask("addition in words", f"{a}+{b} in words", f"{cap(ONES[a])} plus {ONES[b]} is {ONES[a + b]}.",
                            [w + " (words)" for w in words], a=ONES[a], b=ONES[b])
            if b <= a:
                yield from _ask("subtraction", f"{a}-{b}", f"{a} minus {b} is {a - b}.", sub, a=a, b=b)
            if 1 <= a and 1 <= b:
                yield from _ask("multiplication", f"{a}*{b}", f"{a} times {b} is {a * b}.", mul, a=a, b=b)


def numbers():
    after = ["what number comes after {n}?", "which number comes after {n}?", "what is the number after {n}?",
             "what comes after {n}?", "tell me the next number after {n}."]
    before = ["what number comes before {n}?", "which number comes before {n}?", "what is the number before {n}?",
              "what comes before {n}?", "tell me the number before {n}."]
    parity = ["is {n} even or odd?", "is {n} an even number or an odd number?", "is the number {n} odd or even?",
              "tell me if {n} is even or odd."]
    word = ["how do you write {n} in words?", "how do you spell the number {n}?", "write {n} in words.", "write the number {n} as a word.",
            "what is {n} in words?"]
    bigger = ["which is bigger, {a} or {b}?", "which number is bigger, {a} or {b}?", "what is more, {a} or {b}?",
              "which is larger, {a} or {b}?", "is {a} or {b} the bigger number?"]
    smaller = ["which is smaller, {a} or {b}?", "which number is smaller, {a} or {b}?", "what is less, {a} or {b}?",
               "is {a} or {b} the smaller number?"]
    for n in range(21):
        if n < 20:
            yield from _ask("next number", str(n), f"The number after {n} is {n + 1}.", after, n=n)
        if n > 0:
            yield from _ask("number before", str(n), f"The number before {n} is {n - 1}.", before, n=n)
        yield from _ask("even or odd", str(n), f"{n} is an {'odd' if n % 2 else 'even'} number.", parity, n=n)
        yield from _ask("number in words", str(n), f"The number {n} in words is {ONES[n]}.", word, n=n)
    for a in range(1, 21):
        for b in range(1, 21):
            if a != b:
                yield from _ask("bigger number", f"{a}/{b}", f"{max(a, b)} is bigger than {min(a, b)}.", bigger, a=a, b=b)
                yield from _ask("smaller number", f"{a}/{b}", f"{min(a, b)} is smaller than {max(a, b)}.", smaller, a=a, b=b)
    count = ["count from {a} to {b}.", "please count from {a} to {b}.", "can you count from {a} to {b}?",
             "write the numbers from {a} to {b}.", "list the numbers from {a} to {b}."]
    back = ["count backwards from {b} to {a}.", "count down from {b} to {a}.", "can you count down from {b} to {a}?",
            "count from {b} down to {a}."]
    for a in range(0, 11):
        for b in range(a + 3, 21):
            up = [str(n) for n in range(a, b + 1)]
            yield from _ask("counting", f"{a}..{b}", ", ".join(up) + ".", count, a=a, b=b)
            yield from _ask("counting down", f"{b}..{a}", ", ".join(up[::-1]) + ".", back, a=a, b=b)


def calendar():
    for kind, names, noun in (("day", DAYS, "day"), ("month", MONTHS, "month"), ("season", SEASONS, "season")):
        after = ["what {k} comes after {n}?", "which {k} comes after {n}?", "what comes after {n}?", "what is the {k} after {n}?",
                 "tell me the {k} after {n}.", "which {k} follows {n}?", "after {n} comes which {k}?"]
        before = ["what {k} comes before {n}?", "which {k} comes before {n}?", "what comes before {n}?",
                  "what is the {k} before {n}?", "tell me the {k} before {n}.", "before {n} comes which {k}?"]
        for i, n in enumerate(names):
            follow, lead = names[(i + 1) % len(names)], names[i - 1]
            yield from _ask(f"{kind} after", n, f"{cap(follow)} comes after {n}.", after, k=noun, n=n)
            yield from _ask(f"{kind} before", n, f"{cap(lead)} comes before {n}.", before, k=noun, n=n)
    nth = ["what is the {o} {k} of the {w}?", "which {k} is the {o} {k} of the {w}?", "which is the {o} {k} of the {w}?",
           "tell me the {o} {k} of the {w}.", "name the {o} {k} of the {w}."]
    for names, k, w in ((DAYS, "day", "week"), (MONTHS, "month", "year")):
        for n, o in zip(names, ORDINALS):
            yield from _ask(f"{k} by number", n, f"The {o} {k} of the {w} is {n}.", nth, o=o, k=k, w=w)
    for m, days in zip(MONTHS, MONTH_DAYS):
        yield from _ask("days of a month", m, f"{m} has {days} days.", [
            "how many days does {m} have?", "how many days are in {m}?", "how many days are there in {m}?", "how long is {m}?",
            "tell me how many days {m} has.", "what number of days does {m} have?"], m=m)
    for d in DAYS:
        weekend = d in ("Saturday", "Sunday")
        yield from _ask("weekend", d, f"Yes, {d} is part of the weekend." if weekend else f"No, {d} is a weekday.", [
            "is {d} part of the weekend?", "is {d} on the weekend?", "is {d} a weekend day?", "does {d} belong to the weekend?"], d=d)


def lists():
    seven = "The days of the week are " + join(DAYS) + "."
    twelve = "The months of the year are " + join(MONTHS) + "."
    rows = [
        ("days", seven, "the days of the week"), ("months", twelve, "the months of the year"),
        ("seasons", "The seasons are spring, summer, autumn and winter.", "the seasons"),
        ("alphabet", "The letters of the alphabet are " + join(list(LETTERS)) + ".", "the letters of the alphabet"),
        ("rainbow", "The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.",
         "the colours of the rainbow"),
        ("continents", "The continents are Africa, Antarctica, Asia, Europe, North America, Oceania and South America.",
         "the continents"),
        ("planets", "The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.", "the planets"),
        ("senses", "The five senses are sight, hearing, smell, taste and touch.", "the five senses"),
        ("even", "The even numbers up to ten are 2, 4, 6, 8 and 10.", "the even numbers up to ten"),
        ("odd", "The odd numbers up to ten are 1, 3, 5, 7 and 9.", "the odd numbers up to ten")]
    for fact, answer, what in rows:
        yield from _ask("list", fact, answer, [
            "name {w}.", "what are {w}?", "list {w}.", "tell me {w}.", "can you name {w}?", "write down {w}.",
            "do you know {w}?", "give me a list of {w}."], w=what)
    for category, members in CATEGORIES.items():
        plural = {"piece of furniture": "pieces of furniture"}.get(category, category + "s")
        three = cap(join([article(m) for m in members[:3]]))
        yield from _ask("list of a kind", category, f"{three} are {plural}.", [
            "name three {p}.", "tell me three {p}.", "can you name three {p}?", "give me three examples of {p}.",
            "list three {p}.", "name some {p}."], p=plural)
    for continent in ("Europe", "Asia", "Africa", "South America", "North America"):
        here = [c for c, _, where in COUNTRIES if where == continent][:4]
        yield from _ask("list of a kind", continent, f"{cap(join(here))} are in {continent}.", [
            "name four countries in {p}.", "tell me four countries in {p}.", "which countries are in {p}?",
            "list four countries in {p}.", "name some countries in {p}."], p=continent)


def letters():
    for i, letter in enumerate(LETTERS):
        if i + 1 < len(LETTERS):
            yield from _ask("next letter", letter, f"The letter after {letter} is {LETTERS[i + 1]}.", [
                "what letter comes after {x}?", "which letter comes after {x}?", "what is the letter after {x}?",
                "which letter follows {x}?", "tell me the letter after {x}."], x=letter)
        if i > 0:
            yield from _ask("letter before", letter, f"The letter before {letter} is {LETTERS[i - 1]}.", [
                "what letter comes before {x}?", "which letter comes before {x}?", "what is the letter before {x}?",
                "tell me the letter before {x}."], x=letter)


def things():
    for task, tool in TOOLS:
        yield from _ask("tool", task, f"We use {tool} to {task}.", [
            "what do we use to {t}?", "what do you need to {t}?", "what can I use to {t}?", "what do I need to {t}?",
            "which thing do we use to {t}?", "how can I {t}?"], t=task)
        yield from _ask("use of a tool", tool, f"We use {tool} to {task}.", [
            "what do we use {t} for?", "what is the use of {t}?", "what can you do with {t}?", "why do we need {t}?",
            "what do people use {t} for?"], t=tool)
    for task, job in JOBS:
        who = cap(article(job))
        yield from _ask("job", task, f"{who} {task}.", [
            "who {t}?", "which person {t}?", "what do you call a person who {t}?", "tell me who {t}.", "do you know who {t}?"], t=task)
        yield from _ask("work of a person", job, f"{who} {task}.", [
            "what does {j} do?", "what is the job of {j}?", "what is the work of {j}?", "tell me what {j} does."], j=article(job))
    for category, members in CATEGORIES.items():
        for m in members:
            yield from _ask("category", m, f"{cap(article(m))} is {article(category)}.", [
                "what kind of thing is {m}?", "what sort of thing is {m}?", "which kind of thing is {m}?", "what type of thing is {m}?", "tell me what kind of thing {m} is."], m=article(m))
    for noun, rest, _, answer in HOW_MANY:
        yield from _ask("how many", f"{noun} {rest}", answer, [
            "how many {n} {r}?", "do you know how many {n} {r}?" if rest.startswith(("are", "go")) else "please tell me, how many {n} {r}?",
            "can you tell me how many {n} {r}?" if rest.startswith(("are", "go")) else "can you answer this: how many {n} {r}?",
            "what number of {n} {r}?", "I have a question. How many {n} {r}?", "answer me: how many {n} {r}?"], n=noun, r=rest)
    for verb, part in SENSES:
        yield from _ask("body", verb, f"We {verb} with our {part}.", [
            "what do we {v} with?", "what part of the body do we use to {v}?", "which part of the body do we {v} with?",
            "with what do we {v}?", "tell me what we {v} with."], v=verb)
        yield from _ask("use of a body part", part, f"We {verb} with our {part}.", [
            "what do we do with our {p}?", "what are our {p} for?" if part[-1] == "s" or part == "teeth" else "what is our {p} for?",
            "what do people do with their {p}?"], p=part)


def json_facts():
    for c, p, continent in COUNTRIES:
        yield from _ask("JSON", c, f'{{"country": "{cap(c)}", "capital": "{p}", "continent": "{continent}"}}', [
            "describe {c} as JSON.", "give me {c} as JSON.", "write {c} in JSON.", "tell me about {c} in JSON."], c=c)
    for name, legs, sound, young, home, food in ANIMALS:
        yield from _ask("JSON", name, f'{{"animal": "{name}", "food": "{food}", "home": "{home}"}}', [
            "describe {a} as JSON.", "give me {a} as JSON.", "write {a} in JSON.", "tell me about {a} in JSON."], a=article(name))


def countries():
    for c, p, continent in COUNTRIES:
        yield from _ask("about a country", c, f"{cap(c)} is a country in {continent}. Its capital is {p}.", [
            "tell me about {c}.", "what is {c}?", "what do you know about {c}?", "describe {c}.",
            "tell me something about {c}.", "can you tell me about {c}?"], c=c)


def small_talk():
    opening = ["{t}", "hello! {t}", "hi! {t}", "hello, model. {t}", "dear model, {t}"]
    for answer, *phrasings in SMALL_TALK:
        for t in phrasings:
            greeting = answer.startswith(("Hello!", "Good ", "Goodbye"))
            for p in opening[:1] if greeting else opening:
                t2 = t if "! " in p or ". " in p or p == "{t}" or t.startswith(("I ", "English")) else t[0].lower() + t[1:]
                yield Question("small talk", f"{answer}/{t}", p, cap(p.format(t=t2)), answer)


def questions():
    """Every (fact, phrasing) pair of the world, in a fixed order. The marker of a phrasing in words is dropped here."""
    out = []
    for table in (capitals, opposites, colours, animals, sums, numbers, calendar, lists, letters, things, json_facts, countries,
                  small_talk):
        out.extend(table())
    return [Question(q.kind, q.fact, q.phrasing, q.text.replace(" (words)", ""), q.answer) for q in out]
