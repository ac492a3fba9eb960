"""The text the tiny base is taught: short English questions, answers and stories, all made from the tables below.

Nothing is downloaded and nothing is quoted: a few hundred words and some sentence patterns, combined by a seeded random
generator, so that the same seed gives the same text on every machine and every Python.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Turn = tuple[str, str]  # role, content
Conversation = tuple[Turn, ...]

_CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Norway": "Oslo", "Greece": "Athens", "Austria": "Vienna", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi",
    "Portugal": "Lisbon", "Poland": "Warsaw", "Ireland": "Dublin", "Sweden": "Stockholm",
}  # fmt: skip
_COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a ripe tomato": "red", "the sun": "yellow",
    "a carrot": "orange", "a plum": "purple", "milk": "white", "a leaf": "green", "the sea": "blue", "a mouse": "grey",
    "chocolate": "brown", "a lemon": "yellow", "blood": "red", "the night": "black",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "happy": "sad", "old": "new", "light": "dark", "open": "closed",
    "full": "empty", "early": "late", "hard": "soft", "high": "low", "wet": "dry", "long": "short", "loud": "quiet",
}  # fmt: skip
_ANIMALS = {
    "cat": ("sleeps in the sun", "milk"), "dog": ("guards the house", "bones"), "horse": ("runs over the fields", "hay"),
    "owl": ("flies at night", "mice"), "bee": ("makes honey", "nectar"), "cow": ("gives milk", "grass"),
    "fish": ("swims in the river", "worms"), "fox": ("hides in the forest", "eggs"), "bear": ("sleeps all winter", "fish"),
    "sheep": ("gives wool", "grass"), "hen": ("lays eggs", "corn"), "rabbit": ("digs holes", "carrots"),
}  # fmt: skip
_JOBS = {
    "baker": "bakes bread", "teacher": "teaches children", "doctor": "helps sick people", "farmer": "grows corn",
    "pilot": "flies planes", "painter": "paints pictures", "writer": "writes books", "cook": "makes soup",
    "driver": "drives a bus", "singer": "sings songs", "gardener": "plants trees", "sailor": "sails ships",
}  # fmt: skip
_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Hugo", "Ida", "Jack", "Lena", "Max", "Nora", "Tom",
)  # fmt: skip
_PLACES = (
    "the market", "the garden", "the forest", "the school", "the station", "the beach", "the old house", "the city",
)  # fmt: skip
_THINGS = (
    "a book", "a red ball", "some bread", "a letter", "a small box", "a lamp", "a key", "an apple", "a map", "a coat",
)  # fmt: skip
_WEATHER = ("sunny", "rainy", "cold", "windy", "warm", "cloudy")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
            "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")  # fmt: skip
_MACHINES = {
    "a model": "learns from examples", "a computer": "follows a program", "a program": "is a list of steps",
    "a checkpoint": "is a saved state of a run", "memory": "holds the data", "a batch": "is a group of samples",
    "training": "makes a model better", "a graphics card": "does many sums at once", "a disk": "keeps files",
    "a process": "is a program that runs", "an error": "says what went wrong",
    "an adapter": "is a small change to a model", "a supervisor": "watches a process and starts it again",
    "a step": "is one small change of the weights", "a parent": "decides what to do",
    "a child": "computes and reports", "a crash": "ends a run too early", "a sample": "is one row of the data",
    "a lid": "closes a box", "power": "comes from the wall", "a fan": "keeps a card cool",
    "a sentence": "begins with a capital letter", "half": "is one of two equal parts", "a backup": "is a second copy",
}  # fmt: skip
_MEANINGS = {
    "to resume": "to go on after a pause", "to decide": "to choose one way", "to compute": "to do sums",
    "to crash": "to end without warning", "to save": "to keep for later", "to fail": "not to work",
    "to wait": "to do nothing yet", "to double": "to make twice as many", "to halve": "to make half as many",
    "to lose": "not to have any more", "to look after": "to take care of", "to close": "to make shut",
    "the newest": "the one made last", "to cool": "to lose heat",
}  # fmt: skip
_CAUSES = {  # what happens → why
    "the ice melts": "the sun is too hot", "the lamp goes out": "the power fails", "the run waits": "the card is too hot",
    "the boy stays at home": "the night is cold", "the batch gets smaller": "the memory is full",
    "nothing is lost": "the work is saved", "the child sleeps": "it is tired", "the ship waits": "the wind is too strong",
    "the process starts again": "it has crashed", "the girl closes the window": "it is raining",
    "the parent looks after the child": "the child is small", "the run goes on": "the newest checkpoint is good",
    "the price is doubled": "there is too little bread", "the bread is halved": "two people are hungry",
}  # fmt: skip


def _ask(question: str, answer: str) -> Conversation:
    return (("user", question), ("assistant", answer))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _capital(rng: Random) -> Conversation:
    country, city = rng.choice(list(_CAPITALS.items()))
    if rng.random() < 0.3:
        return _ask(f"Where is {city}?", f"{city} is in {country}.")
    question = rng.choice((f"What is the capital of {country}?", f"Which city is the capital of {country}?"))
    return _ask(question, f"The capital of {country} is {city}.")


def _colour(rng: Random) -> Conversation:
    thing, colour = rng.choice(list(_COLOURS.items()))
    if rng.random() < 0.3:
        return _ask(f"Is {thing} {colour}?", f"Yes, {thing} is {colour}.")
    return _ask(f"What colour is {thing}?", f"{_sentence(thing)} is {colour}.")


def _opposite(rng: Random) -> Conversation:
    pair = list(rng.choice(list(_OPPOSITES.items())))
    rng.shuffle(pair)
    return _ask(f"What is the opposite of {pair[0]}?", f"The opposite of {pair[0]} is {pair[1]}.")


def _animal(rng: Random) -> Conversation:
    animal, (does, eats) = rng.choice(list(_ANIMALS.items()))
    return rng.choice(
        (
            _ask(f"What does a {animal} do?", f"A {animal} {does}."),
            _ask(f"What does a {animal} eat?", f"A {animal} eats {eats}."),
            _ask(f"Tell me about the {animal}.", f"The {animal} {does} and eats {eats}."),
        )
    )


def _job(rng: Random) -> Conversation:
    job, does = rng.choice(list(_JOBS.items()))
    name = rng.choice(_NAMES)
    if rng.random() < 0.5:
        return _ask(f"What does a {job} do?", f"A {job} {does}.")
    return _ask(f"{name} is a {job}. What does {name} do?", f"{name} {does}.")


def _sum(rng: Random) -> Conversation:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.5:
        return _ask(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")
    return _ask(f"What is {_NUMBERS[a]} plus {_NUMBERS[b]}?", f"It is {_NUMBERS[a + b]}.")


def _day(rng: Random) -> Conversation:
    i = rng.randrange(7)
    if rng.random() < 0.5:
        return _ask(f"Which day comes after {_DAYS[i]}?", f"{_DAYS[(i + 1) % 7]} comes after {_DAYS[i]}.")
    return _ask(f"Which day comes before {_DAYS[i]}?", f"{_DAYS[(i - 1) % 7]} comes before {_DAYS[i]}.")


def _machine(rng: Random) -> Conversation:
    thing, what = rng.choice(list(_MACHINES.items()))
    return rng.choice(
        (
            _ask(f"What is {thing}?", f"{_sentence(thing)} {what}."),
            _ask(f"What does it mean that {thing} {what}?", f"It means just that: {thing} {what}."),
            _ask(f"Tell me about {thing}.", f"{_sentence(thing)} {what}. That is all you need to know."),
        )
    )


def _meaning(rng: Random) -> Conversation:
    word, meaning = rng.choice(list(_MEANINGS.items()))
    if rng.random() < 0.5:
        return _ask(f"What does {word} mean?", f"It means {meaning}.")
    return _ask(f"Is {word} the same as {meaning}?", f"Yes, {word} means {meaning}.")


def _cause(rng: Random) -> Conversation:
    effect, cause = rng.choice(list(_CAUSES.items()))
    if rng.random() < 0.5:
        return _ask(f"{_sentence(effect)}. Why?", f"Because {cause}.")
    return _ask(f"What happens when {cause}?", f"Then {effect}.")


def _plan(rng: Random) -> Conversation:
    name, place = rng.choice(_NAMES), rng.choice(_PLACES)
    day, time = rng.choice(_DAYS), rng.choice(("in the morning", "at noon", "in the evening", "at night"))
    return rng.choice(
        (
            _ask(f"May I go to {place}?", f"Yes, you may go to {place} {time}."),
            _ask(f"When will {name} come home?", f"{name} will come home on {day} {time}."),
            _ask(f"Who goes to {place} on {day}?", f"{name} goes to {place} on {day}."),
            _ask(f"And if {name} is late?", f"Then we wait for {name} and go {time}."),
        )
    )


def _greeting(rng: Random) -> Conversation:
    name = rng.choice(_NAMES)
    return rng.choice(
        (
            _ask(rng.choice(("Hello!", "Hi!", "Good morning!")), "Hello! How can I help you?"),
            _ask(f"My name is {name}.", f"Nice to meet you, {name}."),
            _ask("How are you?", "I am well, thank you. How are you?"),
            _ask("Who are you?", "I am a very small language model."),
            _ask(rng.choice(("Thank you!", "Thanks!")), "You are welcome."),
            _ask(rng.choice(("Good night!", "Goodbye!")), "Goodbye! See you soon."),
        )
    )


def _errand(rng: Random) -> Conversation:
    name, other = rng.sample(_NAMES, 2)
    place, thing = rng.choice(_PLACES), rng.choice(_THINGS)
    told = f"{name} went to {place} and gave {thing} to {other}."
    question, answer = rng.choice(
        (
            (f"Who has {thing} now?", f"{other} has {thing} now."),
            (f"Where did {name} go?", f"{name} went to {place}."),
            (f"What did {name} give to {other}?", f"{name} gave {thing} to {other}."),
        )
    )
    return _ask(f"{told} {question}", answer)


def _story(rng: Random) -> Conversation:
    name, animal = rng.choice(_NAMES), rng.choice(list(_ANIMALS))
    place, thing, weather = rng.choice(_PLACES), rng.choice(_THINGS), rng.choice(_WEATHER)
    story = (
        f"It was a {weather} day. {name} walked to {place} and met a {animal}. "
        f"The {animal} {_ANIMALS[animal][0]}. {name} found {thing} and went home happy."
    )
    return _ask(rng.choice((f"Tell me a story about {name}.", f"Write a story with a {animal}.")), story)


_KINDS: tuple[Callable[[Random], Conversation], ...] = (
    _capital, _colour, _opposite, _animal, _job, _sum, _day, _machine, _meaning, _cause, _plan, _greeting, _errand, _story,
)  # fmt: skip
_SYSTEM = ("You are a helpful assistant.", "Answer in one sentence.", "Be kind and brief.")


def conversations(count: int, seed: int) -> list[Conversation]:
    """`count` conversations; one in six has two questions, one in eight begins with a system message."""
    rng = Random(seed)
    made: list[Conversation] = []
    for _ in range(count):
        talk = rng.choice(_KINDS)(rng)
        if rng.random() < 1 / 6:
            talk += rng.choice(_KINDS)(rng)
        if rng.random() < 1 / 8:
            talk = (("system", rng.choice(_SYSTEM)), *talk)
        made.append(talk)
    return made
