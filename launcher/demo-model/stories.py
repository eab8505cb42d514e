"""Stories of the demo world: twelve plots, each a list of beats, each beat a few ways to say it.

A beat is one line; `|` separates its phrasings and a leading `?` makes it optional. `{h}` is the hero's name, `{he}`,
`{his}` and `{him}` the pronouns, `{kind}` what the hero is ("fox", "girl"), `{f}` and `{g}` two friends, `{thing}` an object,
`{c}` a colour (`{a_c}` with its article), `{place}` where it happens. A capital letter in the field (`{He}`) capitalises the word.
"""

import unknown
from world import article, cap

GIRLS = "Anna Lily Emma Mia Sara Nora Lucy Ella Rosa Clara Alice Julia Maria Sophie Grace Ruby".split()
BOYS = "Tom Ben Max Leo Sam Paul Peter Jack Oscar Noah Adam David Felix Henry Theo Hugo".split()
PETS = "Finn Pip Bruno Mimi Coco Rusty Daisy Bella Toby Milo Luna Oto Fluff Biscuit Pepper Hazel".split()
BEASTS = "fox rabbit bear cat dog mouse owl duck frog squirrel hedgehog lion elephant turtle pig sheep horse wolf goat " \
         "penguin bee monkey tiger hen deer".split()
OBJECTS = "ball kite boat key hat drum book bell lantern basket scarf train".split()
COLOURS = "red blue green yellow white orange purple brown pink".split()
PLACES = ["in a quiet forest", "near a small village", "by the sea", "on a sunny hill", "at the edge of a big wood",
          "beside a clear river", "in a green valley", "on an old farm", "near a little lake"]
SPOTS = ["under a big tree", "behind a rock", "in the tall grass", "beside the river", "under the old bridge", "behind the barn",
         "in a bush", "on top of the hill"]
FOODS = ["apples", "warm bread", "berries", "a honey cake", "hot soup", "sweet pears", "nuts", "an apple pie"]

OPENINGS = ["Once upon a time, there was {a_little} named {h} who lived {place}.",
            "Once upon a time, {a_little} named {h} lived {place}.",
            "There was once {a_little} who lived {place}. {His} name was {h}.",
            "Long ago, {a_little} named {h} lived {place}.",
            "One day, {a_little} named {h} woke up early. {He} lived {place}."]

PLOTS = {
    "lost thing": """
{h} had {a_c} {thing}, and {he} loved it very much.|{His} best thing in the world was {a_c} {thing}.|{He} had {a_c} {thing} that {he} took everywhere.
One morning, the {thing} was gone.|One day, {he} could not find the {thing}.|But one windy day, the {thing} was not in its place.
"Where is my {thing}?" said {h}. {He} looked under the bed and behind the door, but it was not there.|{h} looked in every corner of the house, but the {thing} was nowhere.
?{He} felt very sad and wanted to cry.|{His} heart was heavy.
First, {h} asked {his} friend {f}. "Have you seen my {c} {thing}?"|{He} went to {f} and said, "I have lost my {thing}. Have you seen it?"
"No, I have not seen it," said {f}, "but I will help you look for it."|"I am sorry, I have not," said {f}. "Let us look for it together."
They walked along the path and looked everywhere.|So the two friends went out and looked to the left and to the right.|Together they walked across the field and called and looked.
?On the way they met {g}, who came along to help.|Soon {g} joined them. Now they were three.
At last, {f} saw something {c} {spot}.|Then {h} saw a little bit of {c} {spot}.|After a long time, they looked {spot}.
It was the {thing}!|"Here it is!" said {f}. It was the {thing}.|"Look!" said {h}. "There is my {thing}!"
{h} was so happy that {he} danced.|{h} smiled a big smile.|{h} laughed with joy.
"Thank you," {he} said to {f}. "You are a good friend."|"I could not find it alone," said {h}. "Thank you."
Then they went home and ate {food}.|That evening, they all ate {food} together.|{h} shared {food} with {his} friends.
""",
    "new friend": """
{h} was often alone, and {he} wished for a friend.|{h} had many toys but no one to play with.|{He} had a nice home, but {he} was a little lonely.
One day, {he} went for a walk {place2}.|One sunny morning, {he} walked down the path.
There {he} met {f}, who sat {spot} and looked sad.|{He} heard a small voice. It was {f}, who sat {spot}.
"Hello, I am {h}," said {h}. "Why are you sad?"|"Good morning," said {h}. "What is wrong?"
"I am new here, and I do not know anyone," said {f}.|"I have no one to play with," said {f}.
"Then we are the same," said {h}. "Do you want to play with me?"|"You can play with me," said {h}. "I know many good games."
{f} jumped up and smiled.|{f} was glad and said yes.
They ran and hid and laughed all day.|They played with {a_c} {thing} until the sun was low.|They made a little house of sticks and leaves.
?When they were hungry, they sat down and ate {food}.|At noon, they shared {food}.
?Then {g} came by and asked, "May I play, too?" "Of course," said {h}.
In the evening, {h} walked {f} home.|When it got dark, they said good night.
"Will you come again tomorrow?" asked {f}. "Yes," said {h}. "I will come every day."|"See you tomorrow," said {h}.
From that day on, {h} was never lonely again.|After that day, {h} and {f} were best friends.
""",
    "helping": """
One day, {h} heard someone call for help.|One morning, {h} was on the way to the market when {he} heard a cry.|{h} was out for a walk when {he} heard a loud cry.
"Help! Help!" called the voice.|"Please help me!" said the voice.
{h} ran as fast as {he} could.|{h} did not wait. {He} ran to look.
It was {f}, who was stuck in the deep mud.|It was {f}, who had fallen into a hole.|There was {f}, who was caught in a bush with long thorns.
"I cannot get out," said {f}. "I have tried for hours."|"I have been here all night," said {f}. "I am cold and tired."
"Do not be afraid," said {h}. "I will help you."|"Stay calm," said {h}. "I have an idea."
{He} found a long branch and held it out.|{He} went to get a strong rope.|{He} looked for a long stick and found one {spot}.
{h} pulled and pulled, but {he} was not strong enough.|{He} pulled once. {He} pulled twice. But nothing moved.
Then {g} came and pulled, too.|So {he} called {g}, and they pulled together.
One, two, three! {f} was free.|With one big pull, {f} came out.
"Thank you," said {f}. "I will never forget this."|"You are very kind," said {f}. "Thank you both."
?They took {f} home and made {food}.|Then they all sat in the sun and ate {food}.
Some days later, {h} needed help, and {f} came at once.|From then on, they always helped each other.
""",
    "rainy day": """
{h} wanted to go outside and play with {his} {c} {thing}.|It was Saturday, and {h} had big plans. {He} wanted to play outside.
But dark clouds came, and it began to rain.|But when {he} opened the door, it was raining hard.
"What a bad day," said {h}.|"Oh no," said {h}. "Now I must stay inside."
{He} sat at the window and watched the drops run down the glass.|{He} looked at the rain for a long time.
Then there was a knock at the door. It was {f}, and {f} was very wet.|Then {f} came to the door, wet from head to foot.
"Come in," said {h}. "Sit by the fire and get warm."|"Come in quickly," said {h}. "I will bring you a towel."
"What can we do today?" asked {f}.|"What shall we play?" asked {f}.
{h} thought for a moment. "Let us build a ship from chairs," {he} said.|"I know," said {h}. "We can make a tent from a blanket."
So they did, and they sailed across the sea in their dreams.|They worked hard, and soon it was ready.|They put a lamp inside, and it was very cosy.
?{h} was the captain, and {f} was the cook.|They told each other funny stories.
They ate {food} and sang a song about the rain.|They had {food} and listened to the rain.
After some hours, the sun came out, and there was a rainbow in the sky.|At last, the rain stopped, but they did not even see it.
"That was the best rainy day ever," said {f}.|"I hope it rains again tomorrow," said {h}.
""",
    "dark night": """
{h} was brave in the day, but {he} was afraid of the dark.|{h} did not like the night, because the night was dark.
Every evening, {he} hid under the blanket.|When the sun went down, {he} always closed {his} eyes.
One night, {he} heard a soft sound at the window.|One night, someone knocked at the window.
It was the old owl from the big tree.|It was {f}, who could not sleep.
"Why do you hide?" asked the visitor.|"Why are you under the blanket?" asked the visitor.
"I am afraid of the dark," said {h} in a small voice.|"It is so dark," said {h}. "I cannot see anything."
"Come with me," said the visitor. "I will show you something."|"Then you have never seen the best part of the night," said the visitor. "Come outside."
{h} was afraid, but {he} went out.|Slowly, {h} opened the door and took one step, and then one more.
"Now look up," said the visitor.|They sat down {spot} and looked up.
The sky was full of stars, and the moon was big and round.|High above them, a thousand stars were shining.
?They counted the stars: one, two, three, four, five. There were too many to count.
"It is beautiful," said {h}. "And I can only see it because it is dark."|"I did not know that the night was so beautiful," said {h}.
After that night, {h} was not afraid any more.|From then on, {h} looked at the stars every night before {he} went to sleep.
""",
    "birthday": """
It was {h}'s birthday, but nobody said a word about it.|Today was {h}'s birthday. {He} woke up early and was very excited.
{He} went to {f}, but {f} had no time.|{He} met {f} on the path. "I am busy today," said {f} and ran away.
{He} went to {g}, but {g} was not at home.|Then {he} looked for {g}, but the house of {g} was empty.
"They have all forgotten my birthday," thought {h}.|"Nobody remembers my birthday," said {h}.
{He} sat down {spot} and felt sad.|Slowly, {he} walked home with {his} head down.
In the evening, {he} saw a light in {his} house.|When {he} came home, the door was open and the house was dark.
{h} opened the door very carefully.|{h} went in on quiet feet.
"Surprise!" called {f} and {g}. "Happy birthday, {h}!"|"Happy birthday!" all {his} friends called.
There were {c} flowers on the table, and there was a big cake.|On the table were a cake and {a_c} box.
In the box was {a_c} {thing}.|They gave {him} {a_c} {thing}.|{h} got {a_c} {thing} from {f}.
"So you did not forget!" said {h}.|"I thought you had forgotten me," said {h}.
"We could never forget you," said {f}. "It was a secret."|"We had to keep it a secret," said {g}.
They sang and danced until late at night.|They ate cake and laughed until the moon came up.
""",
    "garden": """
One spring day, {h} found a tiny seed {spot}.|In spring, {f} gave {h} a tiny seed.
"What will it be?" {he} asked.|"It is so small," {he} said. "What can grow from it?"
{He} made a hole in the ground, put in the seed, and gave it water.|{He} planted it in the garden behind the house.
Every morning, {he} went to look, but there was nothing.|{He} waited one day, two days and three days, but nothing happened.
"You must wait," said {f}. "Good things take time."|"Do not give up," said {f}. "A seed needs sun and water and time."
So {h} waited, and {he} gave it water every day.|So {h} came every day with {his} little can of water.
Then, after a week, there was a small green leaf.|One morning, a little green leaf came out of the ground.
It grew and grew.|The plant grew higher every day.
In summer, it was taller than {h}.|By summer, it had a big yellow flower.
?{g} came to see it and said, "I have never seen such a big plant."
In autumn, there was a giant pumpkin.|In autumn, the plant had a huge orange pumpkin.
It was too heavy for one, so {h} called all {his} friends to carry it home.|{h} and {f} and {g} pulled together to bring it home.
They made soup for everybody, and there was enough for the whole village.|There was so much to eat that nobody was hungry that winter.
{h} kept one seed for the next spring.|And {h} put one little seed in a box for the next year.
""",
    "race": """
One day, there was a big race from the river to the hill.|Every summer, there was a race around the lake.
{f} was very fast. "I will win," said {f}. "Nobody is as fast as I am."|"I am the fastest of all," said {f}. "Nobody can win against me."
{h} was not fast, but {he} wanted to try.|"I will run, too," said {h}, and some of the others laughed.
{g} stood at the line and counted. "One, two, three, go!"|"Ready?" asked {g}. "Go!"
{f} ran away like the wind.|{f} was soon far in front.
{h} went slowly, step by step.|{h} did not stop. {He} put one foot in front of the other.
Halfway, {f} looked back and saw nobody.|Soon {f} could not see {h} any more.
"I have a lot of time," said {f}, and lay down {spot}.|"I will have a little rest," said {f}, and sat down {spot}.
The sun was warm, and {f} fell asleep.|It was a hot day, and soon {f} was sleeping.
{h} came by, saw {f} asleep, and walked on.|On and on went {h}, and {f} did not wake up.
When {f} woke up, {h} was almost at the end.|At last, {f} woke up and ran, but it was too late.
{h} won the race, and everyone cheered.|{h} was first, and everybody clapped.
"How did you do it?" asked {f}. "I just did not stop," said {h}.|"You were slow, but you did not stop," said {f}. "Well done!"
""",
    "strange noise": """
One night, {h} heard a strange noise.|In the middle of the night, {h} woke up. There was a noise outside.
"What is that?" {he} thought.|"Who is there?" asked {h}, but nobody answered.
It came from {spot2}.|The noise came again, a little louder.
{h} took a lamp and went to get {f}.|{h} was afraid, so {he} went to {f} and woke {f} up.
"I heard it, too," said {f}. "Maybe it is a monster."|"Maybe it is a ghost," said {f}.
They held hands and walked very slowly.|Together they went out into the dark.
The wind was blowing, and the trees were moving.|The moon was behind a cloud, and they could hardly see.
"There it is," said {f} and pointed {spot}.|"Look," said {h}. "Something is moving {spot}."
{h} lifted the lamp. Two eyes were shining in the dark.|They saw two small eyes in the light of the lamp.
It was only a little kitten, and it was cold and hungry.|It was not a monster. It was a tiny kitten that had lost its way.
"Poor little thing," said {h}. "Come home with us."|"You do not have to be afraid," said {h} to the kitten.
They gave it warm milk and a soft bed.|At home, the kitten drank some milk and fell asleep by the fire.
And from that night on, the kitten stayed with {h}.|In the morning, the kitten was happy, and so were {h} and {f}.
""",
    "journey": """
{h} had never seen the sea, and {he} dreamed of it every night.|"I want to see the sea," said {h} one morning.|{h} wanted to know what was behind the high hill.
So {he} packed {food} and {a_c} {thing} and went away.|{He} put {food} into a bag, took {his} {c} {thing} and started to walk.
On the first day, {he} came to a wide river.|Soon {he} came to a river without a bridge.
{f} sat there in a little boat. "I can take you across," said {f}.|"How can I get across?" {he} asked. "I will help you," said {f}.
"Where are you going?" asked {f}.|"And where do you want to go?" asked {f}.
"I want to see the world," said {h}. "Do you want to come along?"|"Far away," said {h}. "Come with me!"
So they went on together.|{f} liked the idea, and so they were two.
On the second day, they met {g}, who knew the way.|On the second day, they lost their way, but {g} showed them the right path.
At night, they slept under the stars.|In the evening, they made a fire and told stories.
On the third day, they climbed a high hill.|On the third day, they heard a sound like wind, but it was not the wind.
There, at last, was the sea, blue and wide and shining.|And there it was: the blue sea, with white ships on it.
{h} stood very still. "It is bigger than my dreams," {he} said.|For a long time, nobody said a word. It was too beautiful.
They stayed until the sun went down, and then they went home.|They played on the beach, and after a week they went home and told everyone about it.
""",
    "learning": """
{h} wanted to learn to swim.|{h} wanted to ride a bicycle.|{h} wanted to play the drum.|{h} wanted to learn to sing.
{He} tried it on Monday, but it did not work.|The first time, everything went wrong.
Some of the others laughed, and {h} felt bad.|"I will never learn it," said {h}.
"Everything is hard before it is easy," said {f}.|"Nobody can do it the first time," said {f}. "Try again."
So {h} tried again on Tuesday, and it was a little better.|So {he} tried again the next day.
On Wednesday, {he} tried ten times.|{He} tried and tried, in the morning and in the evening.
?Once {he} wanted to give up, but {g} said, "You are almost there."
{f} came every day to help.|{f} stayed with {him} and showed {him} how to do it.
On Friday, something wonderful happened.|Then, one sunny day, it happened.
{h} could do it!|It worked! {h} could do it all alone.
"Look at me!" {he} called.|"I can do it! I can do it!" {he} called.
{f} and {g} clapped and cheered.|All {his} friends were proud of {him}.
The next week, {h} saw someone small who wanted to learn it, too. "Come," said {h}. "I will help you."|That night, {h} was tired but very happy.
""",
    "sharing": """
One day, {h} found a basket full of {food2} {spot}.|One morning, there was a big basket of {food2} at {h}'s door.
"All this is for me," said {h}.|"I will eat it all alone," thought {h}.
Then {f} came by. "I am so hungry," said {f}. "May I have some?"|{f} saw the basket. "May I have a little?" asked {f}.
"No," said {h}. "I found it."|But {h} shook {his} head. "It is mine."
{f} went away and was sad.|So {f} went home with nothing.
{h} sat down and began to eat.|{h} ate and ate.
But it did not taste good, because {he} was alone.|After some time, {he} was full, but {he} was not happy.
"It is no fun to eat alone," {he} thought.|Then {he} thought of {f}, and {he} felt bad.
{He} took the basket and ran after {f}.|So {he} carried the basket to the house of {f}.
"I am sorry," said {h}. "Please eat with me."|"Forgive me," said {h}. "There is enough for both of us."
{f} smiled. "Let us call {g}, too," said {f}.|"That is very kind," said {f}. "{g} is hungry, too."
The three of them sat in the sun and ate until the basket was empty.|They ate together, and everything tasted twice as good.
"Now I know it," said {h}. "Things are better when we share them."|{h} learned that it is good to share.
""",
}

ENDINGS = ["The end.", "And they lived happily ever after.", "And that is the end of the story.", "{h} slept very well that night.",
           "It was a very good day.", "", ""]


def hero(rng, want=None):
    """A hero of the wanted kind ("fox", "girl", "boy"), or of any."""
    kind = want or rng.choice(BEASTS + ["girl", "boy"] * 6)
    if kind == "girl":
        return kind, rng.choice(GIRLS), "she"
    if kind == "boy":
        return kind, rng.choice(BOYS), "he"
    return kind, rng.choice(PETS), rng.choice(["he", "she"])


def story(rng, want=None, thing=None, name=None, colour=None):
    """One story as text. The order of the beats is fixed by the plot; how each is said is drawn."""
    kind, h, he = hero(rng, want)
    h = name or h
    friends = rng.sample([n for n in GIRLS + BOYS + PETS if n != h], 2)
    animals = rng.sample([b for b in BEASTS if b != kind], 2)
    f, g = (f"the {a}" if rng.random() < 0.5 else n for a, n in zip(animals, friends))
    colour = colour or rng.choice(COLOURS)
    small = rng.choice(["little", "small", "young", "kind", "brave"])
    fields = dict(
        h=h, he=he, his={"he": "his", "she": "her"}[he], him={"he": "him", "she": "her"}[he], kind=kind, f=f, g=g,
        a_little=article(f"{small} {kind}"), thing=thing or rng.choice(OBJECTS), c=colour, a_c=article(colour), place=rng.choice(PLACES),
        place2=rng.choice(["to the river", "in the forest", "across the field", "along the beach"]), spot=rng.choice(SPOTS),
        spot2=rng.choice(["the roof", "the garden", "the old barn", "the dark forest"]), food=rng.choice(FOODS),
        food2=rng.choice(["apples", "berries", "nuts", "pears"]))
    fields |= {"He": cap(fields["he"]), "His": cap(fields["his"])}
    plot = PLOTS["lost thing" if thing and rng.random() < 0.8 else rng.choice(sorted(PLOTS))]
    beats = [rng.choice(OPENINGS)]
    for line in plot.strip().split("\n"):
        if line.startswith("?"):
            if rng.random() < 0.5:
                continue
            line = line[1:]
        beats.append(rng.choice(line.split("|")))
    beats.append(rng.choice(ENDINGS))
    return _sentences(" ".join(beats).strip().format(**fields))


def _sentences(text):
    """`the fox` at the start of a sentence or of speech becomes `The fox`."""
    out, start = [], True
    for i, ch in enumerate(text):
        out.append(ch.upper() if start and ch.isalpha() else ch)
        if ch.isalpha() or ch == ",":
            start = False
        elif ch in ".!?":
            # A question or cry inside speech goes on in lower case when the speaker follows: `"Why?" asked the fox.`
            closing = text[i + 1:i + 2] == '"'
            start = not (closing and text[i + 3:i + 4].islower() and not text[i + 3:].startswith("the ")) if closing else True
        elif ch == '"' and text[i + 1:i + 2].isalpha() and text[max(i - 2, 0):i] != ", ":
            start = i == 0 or text[i - 1] == " "
    return "".join(out)


def request(rng):
    """A request for a story and the story."""
    kind = rng.choice(BEASTS + ["girl", "boy"])
    thing = name = want = colour = None
    draw = rng.random()
    if draw < 0.25:
        what = ""
    elif draw < 0.65:
        want, what = kind, f" about {article(kind)}"
    elif draw < 0.80:
        want = rng.choice(["girl", "boy"])
        name = rng.choice(GIRLS if want == "girl" else BOYS) if rng.random() < 0.6 else unknown.name(rng)
        what = f" about {article(want)} named {name}"
        if rng.random() < 0.4:
            thing, colour = rng.choice(OBJECTS), rng.choice(COLOURS)
            what += f" and {'her' if want == 'girl' else 'his'} {colour} {thing}"
    else:
        thing = rng.choice(OBJECTS)
        what = f" about {article(thing)}"
        if rng.random() < 0.5:
            want, what = kind, f" about {article(kind)} and {article(thing)}"
    ask = rng.choice(["Tell me a story{w}.", "Tell me a short story{w}.", "Write a story{w}.", "Can you tell me a story{w}?",
                      "I would like to hear a story{w}.", "Please tell me a story{w}.", "Write a short story{w}.",
                      "Please write a story{w}.", "Do you know a story{w}?" if what else "Tell me another story.", "A story{w}, please."])
    return ask.format(w=what), story(rng, want, thing, name, colour)
