"""Writes the training text of the demo model: chats, stories and plain text about the small world of `world.py`.

Seeded and without third-party imports, so the same seed gives the same text on any machine.

    python generate_text.py --documents 5 --seed 0      # show some
    python generate_text.py --heldout heldout_questions.json

A document is `{"messages": [...]}` (a chat) or `{"text": "..."}` (plain text). Questions on the held-out list never occur
in a training document: neither as the same words nor in another spelling of them.
"""

import argparse
import json
import random
import re
from collections import defaultdict

import stories
import unknown
import world
from world import cap

HELDOUT_SEED = 20261121
# Of the pairs (fact, phrasing) this share is never trained on. Every fact keeps its other phrasings, every phrasing its other facts.
HELDOUT_SHARE = 0.06
NUM_HELDOUT = 100

# What the 100 questions are reported by. The number is how many of the 100.
GROUPS = {
    "countries": (12, ["capital", "capital of which country", "continent", "about a country"]),
    "opposites": (8, ["opposite"]),
    "colours": (9, ["colour", "colour, yes or no", "things of a colour", "mixed colour"]),
    "animals": (12, ["legs", "sound", "sound of which animal", "young animal", "home", "food", "about an animal"]),
    "sums": (12, ["addition", "addition in words", "subtraction", "multiplication"]),
    "numbers": (7, ["next number", "number before", "even or odd", "number in words", "bigger number", "smaller number"]),
    "counting": (4, ["counting", "counting down"]),
    "days and months": (9, ["day after", "day before", "month after", "month before", "season after", "season before",
                            "day by number", "month by number", "days of a month", "weekend"]),
    "lists": (2, ["list", "list of a kind"]),
    "letters": (2, ["next letter", "letter before"]),
    "things and people": (6, ["tool", "use of a tool", "job", "work of a person", "category", "body", "use of a body part"]),
    "how many": (2, ["how many"]),
    "JSON": (2, ["JSON"]),
    "small talk": (5, ["small talk"]),
    "unknown": (8, ["unknown"]),
}
GROUP_OF = {kind: group for group, (_, kinds) in GROUPS.items() for kind in kinds}

# How often a kind is drawn, against 1 for the others; roughly by how many facts it has, since a fact must be seen to be learnt.
WEIGHTS = {
    "capital": 6, "capital of which country": 4, "continent": 4, "about a country": 3, "opposite": 7, "colour": 4,
    "colour, yes or no": 6, "addition": 8, "addition in words": 4, "subtraction": 6, "multiplication": 7, "bigger number": 4,
    "smaller number": 4, "counting": 3, "counting down": 3, "small talk": 14, "legs": 3, "sound": 2, "sound of which animal": 2,
    "young animal": 3, "home": 3, "food": 3, "about an animal": 4, "category": 3, "how many": 3, "tool": 2, "use of a tool": 2,
    "job": 2, "work of a person": 2, "JSON": 3, "next letter": 2, "letter before": 2, "number in words": 2, "list": 3,
    "month after": 2, "month before": 2,
}

# The text has four stages. Stories are most of the tokens of the first, where the language is learnt; once they are fluent, the
# second has few of them and more of the facts that take the most repetition. The third and the fourth, short, repeat what was weak
# after the one before: first days and months, then the colours asked for with "Is ...?".
STORY_SHARE = {1: (0.06, 0.40), 2: (0.02, 0.20), 3: (0.03, 0.20), 4: (0.05, 0.20)}
MEMORY_SHARE = {1: 0.05, 2: 0.05, 3: 0.12, 4: 0.12}
SLOW = ["addition", "addition in words", "subtraction", "multiplication", "bigger number", "smaller number", "counting",
        "counting down", "even or odd", "next number", "number before", "capital", "capital of which country", "JSON"]
WEAK = ["day after", "day before", "month after", "month before", "season after", "season before", "day by number", "month by number"]
REPEATED = {1: {}, 2: {kind: 2 for kind in SLOW},
            3: {kind: 8 for kind in WEAK} | {"colour, yes or no": 2, "continent": 1.5, "bigger number": 1.5, "smaller number": 1.5},
            4: {kind: 3 for kind in WEAK} | {"colour, yes or no": 12, "JSON": 2, "capital of which country": 1.5}}
# One colour in eleven is right, so "Yes" is rarely the answer; the last stages ask for the right one this many times as often.
YES_REPEATED = {1: 1, 2: 1, 3: 10, 4: 5}

SYSTEM = ["You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "You are a small demonstration model.",
          "You answer simple questions in simple English.", "Be polite.", "You are a helpful, honest and polite assistant.",
          "Answer the question.", "You are a teacher.", "Please be kind and helpful.", "You tell stories and answer questions."]


class World:
    """The questions, divided into those to train on and those held out."""

    def __init__(self, stage=1):
        self.stage = stage
        rng = random.Random(HELDOUT_SEED)
        pairs = defaultdict(list)
        for q in world.questions():
            pairs[q.kind, q.fact].append(q)
        self.train, self.heldout = defaultdict(list), defaultdict(list)
        for (kind, _), questions in pairs.items():
            # At most one phrasing of a fact is held out, and never the only one.
            out = rng.randrange(len(questions)) if rng.random() < HELDOUT_SHARE * len(questions) and len(questions) > 2 else None
            for i, q in enumerate(questions):
                (self.heldout if i == out else self.train)[kind].append(q)
        # The same words may be asked for two facts ("What is 3 plus 4?" after "3 + 4"); what is held out is held out as text.
        self.heldout_texts = {_plain(q.text) for qs in self.heldout.values() for q in qs}
        for kind in self.train:
            self.train[kind] = [q for q in self.train[kind] if _plain(q.text) not in self.heldout_texts]
        while len(self.heldout["unknown"]) < 60:
            q = unknown.question(rng, heldout=True)
            if _plain(q.text) not in self.heldout_texts:
                self.heldout_texts.add(_plain(q.text))
                self.heldout["unknown"].append(q)
        self.train, self.heldout = dict(self.train), dict(self.heldout)
        yes = [q for q in self.train["colour, yes or no"] if q.answer.startswith("Yes")]
        self.train["colour, yes or no"] += (YES_REPEATED[stage] - 1) * yes
        self.kinds = sorted(self.train)
        self.weights = [WEIGHTS.get(kind, 1) * REPEATED[stage].get(kind, 1) for kind in self.kinds]

    def split_heldout(self):
        """The 100 questions of the published list, and the rest of the held-out pairs (to watch the training with)."""
        rng = random.Random(HELDOUT_SEED + 1)
        test, rest = [], []
        for num, kinds in GROUPS.values():
            pool = {kind: rng.sample(self.heldout.get(kind, []), len(self.heldout.get(kind, []))) for kind in kinds}
            for _ in range(num):
                # Kind by kind in turn, so that a group's questions cover all of its kinds.
                kinds = sorted(kinds, key=lambda kind: (sum(q.kind == kind for q in test), kind))
                kind = next(kind for kind in kinds if pool[kind])
                test.append(pool[kind].pop())
            for kind in pool:
                rest += pool[kind]
        rng.shuffle(rest)
        return test, rest

    def question(self, rng):
        if rng.random() < 0.16:
            return unknown.question(rng)
        return rng.choice(self.train[rng.choices(self.kinds, self.weights)[0]])

    def spell(self, rng, text):
        """The question as some person would type it, but never as a held-out question is."""
        typed = spelling(rng, text)
        return text if _plain(typed) in self.heldout_texts else typed


def _plain(text):
    return "".join(ch for ch in text.lower() if ch.isalnum() or ch in "+-*").replace("please", "")


def spelling(rng, text):
    """How a hurried, a polite or a careful person types the same question."""
    if rng.random() < 0.3:
        text = re.sub(r"(\d) ([-+*]) (\d)", r"\1\2\3", text)
    draw = rng.random()
    if draw < 0.55:
        return text
    if draw < 0.67:
        return text.rstrip("?.! ") or text
    if draw < 0.77:
        return text[0].lower() + text[1:]
    if draw < 0.88:
        return text.lower().rstrip("?.! ") or text
    if draw < 0.92 and text.endswith("?"):
        return text[:-1] + ", please?"
    if draw < 0.95 and text.endswith("."):
        return "Please " + text[0].lower() + text[1:] if not text.startswith("I ") else text
    if draw < 0.98:
        return rng.choice(["Hello! ", "Hi! ", "Hello, ", "Okay. ", "Now tell me: "]) + text
    return text + " " + rng.choice(["Thank you.", "Please.", "Thanks!", "I want to know."])


def turn(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def single(w, rng):
    q = w.question(rng)
    return turn(w.spell(rng, q.text), q.answer)


def follow_up(w, rng):
    """Two or three questions of one kind where only the first is a full sentence: "And Spain?"."""
    kind = rng.choice(["capital", "opposite", "sound", "legs", "food", "young animal", "colour", "home"])
    facts = {}
    for q in w.train[kind]:
        facts.setdefault(q.fact, q)
    first = rng.choice(w.train[kind])
    out = turn(w.spell(rng, first.text), first.answer)
    for fact in rng.sample(sorted(f for f in facts if f != first.fact), rng.choice([1, 1, 2])):
        noun = world.article(fact) if fact in world.ANIMAL else fact
        out += turn(w.spell(rng, rng.choice([f"And {noun}?", f"And what about {noun}?", f"What about {noun}?"])), facts[fact].answer)
    return out


def memory(w, rng):
    """Something about the user that is asked for again, some turns later."""
    name = rng.choice(stories.GIRLS + stories.BOYS + stories.PETS + unknown.FIRST) if rng.random() < 0.6 else unknown.name(rng)
    colour = rng.choice(sorted(world.COLOURS))
    animal = rng.choice(sorted(world.ANIMAL))
    tell, say, ask, answer = rng.choice([
        (["My name is {x}.", "I am {x}.", "Hello, my name is {x}.", "Hello! I am {x}."], "Hello, {x}! It is nice to meet you.",
         ["What is my name?", "Do you know my name?", "Who am I?", "Tell me my name."], "Your name is {x}."),
        (["My favourite colour is {c}.", "I like the colour {c}."], "{C} is a beautiful colour.",
         ["What is my favourite colour?", "Which colour do I like?"], "You like the colour {c}."),
        (["I have {a}.", "At home, I have {a}."], "That is nice. I like animals.",
         ["Which animal do I have?", "What animal do I have?"], "You have {a}."),
    ])
    f = dict(x=name, c=colour, C=cap(colour), a=world.article(animal))
    out = turn(w.spell(rng, rng.choice(tell).format(**f)), say.format(**f))
    for _ in range(rng.choice([0, 0, 1, 2])):
        out += single(w, rng)
    return out + turn(w.spell(rng, rng.choice(ask)), answer.format(**f))


def chat(w, rng):
    draw = rng.random()
    stories_share = STORY_SHARE[w.stage][0]
    if draw < stories_share:
        out = turn(*_story(w, rng))
    elif draw < 0.66:
        out = single(w, rng)
    elif draw < 0.74:
        out = follow_up(w, rng)
    elif draw < 0.74 + MEMORY_SHARE[w.stage]:
        out = memory(w, rng)
    else:
        out = []
        if rng.random() < 0.4:
            q = rng.choice(w.train["small talk"])
            out += turn(w.spell(rng, q.text), q.answer)
        for _ in range(rng.choice([2, 2, 3, 4])):
            out += turn(*_story(w, rng)) if rng.random() < stories_share / 2 else single(w, rng)
        if rng.random() < 0.2:
            out += turn(rng.choice(["Thank you!", "Thanks!", "Thank you very much!"]), "You are welcome!")
    if rng.random() < 0.15:
        out = [{"role": "system", "content": rng.choice(SYSTEM)}] + out
    return {"messages": out}


def _story(w, rng):
    ask, text = stories.request(rng)
    return w.spell(rng, ask), text


def plain(w, rng):
    """Text without chat marks, for clients which send a bare prompt."""
    draw = rng.random()
    if draw < STORY_SHARE[w.stage][1]:
        return {"text": stories.story(rng)}
    if draw < 0.75:
        q = w.question(rng)
        return {"text": w.spell(rng, q.text) + rng.choice([" ", "\n"]) + q.answer}
    if draw < 0.85:
        q = w.question(rng)
        return {"text": rng.choice(["Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "User: {q}\nAssistant: {a}"]).format(q=q.text, a=q.answer)}
    known = [rng.choice(w.train[rng.choices(w.kinds, w.weights)[0]]) for _ in range(rng.randint(3, 7))]
    return {"text": " ".join(q.answer for q in known if q.kind not in ("small talk", "JSON", "counting", "counting down"))
            or "The sky is blue."}


def document(w, rng):
    return plain(w, rng) if rng.random() < 0.12 else chat(w, rng)


def documents(seed, stage=1):
    """An endless stream of training documents of one stage."""
    w, rng = World(stage), random.Random(seed)
    while True:
        yield document(w, rng)


def heldout_documents(seed, num):
    """Chats about the held-out questions, new stories and plain text, for the loss on text that was not trained on."""
    w, rng = World(), random.Random(seed)
    _, rest = w.split_heldout()
    for i in range(num):
        if i % 4 == 0:
            yield {"messages": turn(*stories.request(rng))}
        elif i % 4 == 1:
            yield {"text": stories.story(rng)}
        else:
            q = rng.choice(rest)
            yield {"messages": turn(q.text, q.answer)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=0, help="print this many documents as JSON lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=1, choices=sorted(STORY_SHARE))
    parser.add_argument("--heldout", help="write the list of 100 held-out questions to this file")
    args = parser.parse_args()
    for _, doc in zip(range(args.documents), documents(args.seed, args.stage)):
        print(json.dumps(doc))
    if args.heldout:
        test, _ = World().split_heldout()
        rows = [{"group": GROUP_OF[q.kind], "kind": q.kind, "question": q.text, "answer": q.answer} for q in test]
        assert len(rows) == NUM_HELDOUT
        with open(args.heldout, "w") as f:
            f.write("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
