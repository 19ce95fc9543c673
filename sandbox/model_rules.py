"""A language model of a few rules, for demonstrations: it uses the tools that it is offered, and invents nothing.

Pure and deterministic. It reads English of the plainest kind; all it knows about a person is in the request.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sandbox.model_behaviours import Turn, call, say, turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandbox.bodies import Json

REMEMBER = "remember_user_info"
SEARCH = "search_user_memory"
UNKNOWN = "I don't know that yet."
EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Fact:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Tell:
    """The person says things about themselves."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """The person asks about themselves: about one thing, or, with no topic, about all."""

    topic: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    topic: str


@dataclass(frozen=True, slots=True)
class Chat:
    said: str


Wish: TypeAlias = Tell | Ask | Forget | Chat


def small_model(body: Json) -> Turn:
    """Answer the request *body*: with tool calls, or in a sentence made of what tools and data blocks say."""
    messages = [each for each in body.get("messages") or [] if isinstance(each, dict)]
    said, results = last_exchange(messages)
    wish = understand(said)
    if results:
        return say(from_results(wish, results))
    calls = list(calls_for(wish, body.get("tools") or []))
    return turn(*calls) if calls else say(without_tools(wish, data_facts(messages)))


def last_exchange(messages: Sequence[Json]) -> tuple[str, list[str]]:
    """Return what the person said last, without data blocks, and the results of the tools that were run for it."""
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") == "tool":
            results.insert(0, text_of(message))
        elif message.get("role") == "user" and (said := spoken(text_of(message))):
            return said, results
    return "", results


def text_of(message: Json) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


# What a person means.

TOPICS: dict[str, str] = {
    r"where (?:do|did) i live|where i live|which city|what city|where(?: is|'s) my home": "city",
    r"who am i|what(?: is|'s|s) my name|what am i called|my name": "name",
    r"how old am i|my age": "age",
    r"when(?: is|'s|s) my birthday|when was i born": "birthday",
    r"where (?:do|did) i work|what do i do\b|what(?: is|'s|s) my (?:job|work)|for a living": "job",
    r"where (?:am|do|did) i (?:come )?from": "home_town",
    r"am i allergic|what am i allergic to": "allergy",
    r"what do i (?:like|love)": "likes",
    r"what do i (?:dislike|hate)": "dislikes",
}
QUERIES = {"city": "city live", "job": "job work", "home_town": "home town from"}
ABOUT_ALL = re.compile(
    r"(?:know|remember(?:ed)?|memories|stored) (?:of|about|on) me\b|\bmy memories\b|what do you (?:know|remember)\W*$",
    re.I,
)
MY_THING = re.compile(r"\bmy (?P<thing>[\w' -]+?)(?: (?:is|are|was|were|again|please))*\s*[?.!]*$", re.I)
ASKS = re.compile(r"\?\s*$|^(?:what|where|when|who|which|how|do you|can you tell|tell me|list|show)\b", re.I)
FORGETS = re.compile(r"^(?:please |can you |could you )*(?:forget|delete|erase)\b(?P<what>.*)", re.I)
WANTS_MEMORY = re.compile(r"\b(?:remember|don't forget|note|keep in mind)\b", re.I)
END_OF_REQUEST = re.compile(
    r"[\s,;.]*\b(?:and |so |please |could you |can you )*(?:remember|don't forget|note|keep in mind)\b"
    r"(?: (?:that|this|it))?(?: for me| please|, please)*[\s.!]*$",
    re.I,
)
CLAUSE = re.compile(r"(?<=\w{3}[.!?])\s+|,? and (?=(?:i|i'm|my|call me)\b)|\n+", re.I)

STATEMENTS: tuple[tuple[str, str], ...] = (
    (r"\bmy name(?: is|'s) (.+)", "name"),
    (r"\b(?:call me|i am called|i'm called) (.+)", "name"),
    (r"\bi(?: now| currently)? live in (.+)", "city"),
    (r"\bmy (favou?rite [\w -]+?) (?:is|are) (.+)", ""),
)
"""Remembered whenever they are said. Where no key is given, the first group is the key."""

STATEMENTS_IF_ASKED: tuple[tuple[str, str], ...] = (
    (r"\bmy ([\w' -]+?) (?:is|are) (.+)", ""),
    (r"\b(?:i am|i'm) (\d+)(?: years old)?$", "age"),
    (r"\b(?:i am|i'm|i come) from (.+)", "home_town"),
    (r"\b(?:i am|i'm) allergic to (.+)", "allergy"),
    (r"\bi work (?:as an?|as|at|for|in) (.+)", "job"),
    (r"\bi(?: really)? (?:like|love) (.+)", "likes"),
    (r"\bi(?: really)? (?:dislike|hate) (.+)", "dislikes"),
    (r"\bremember(?: that)?:? (.+)", "note"),
)


def understand(said: str) -> Wish:
    if forgets := FORGETS.match(said):
        return Forget(forgettable(forgets["what"].strip(" .!?")))
    if ASKS.search(said):
        if ABOUT_ALL.search(said):
            return Ask()
        topic = topic_of(said)
        if topic:
            return Ask(topic)
    facts = tuple(told(said))
    return Tell(facts) if facts else Chat(said)


def forgettable(what: str) -> str:
    if topic := topic_of(what) or next((fact.key for fact in told(what)), ""):
        return topic
    return EVERYTHING if re.match(r"(?:everything|all)\b", what, re.I) else as_key(what)


def topic_of(said: str) -> str:
    """Return the key that *said* is about; empty if it is about nothing of the person's own."""
    for pattern, topic in TOPICS.items():
        if re.search(rf"\b(?:{pattern})", said, re.I):
            return topic
    mine = MY_THING.search(said)
    return as_key(mine["thing"]) if mine else ""


def told(said: str) -> Iterator[Fact]:
    asked = WANTS_MEMORY.search(said) is not None
    statements = STATEMENTS + STATEMENTS_IF_ASKED if asked else STATEMENTS
    for clause in CLAUSE.split(END_OF_REQUEST.sub("", said)):
        for pattern, key in statements if not clause.strip().endswith("?") else ():
            if found := re.search(pattern, clause.strip(), re.I):
                value = END_OF_REQUEST.sub("", found[found.re.groups]).strip(" .!,")
                if value:
                    yield Fact(key or as_key(found[1]), value)
                break


def as_key(words: str) -> str:
    plain = words.casefold().replace("'s", "").replace("favour", "favor").replace("colour", "color")
    return "_".join(re.findall(r"\w+", plain))


# What it does about it.


def calls_for(wish: Wish, tools: Iterable[Any]) -> Iterator[Turn]:
    """Yield the calls of tools on offer that *wish* needs."""
    offered = {name: parameters for name, parameters in map(of_tool, tools) if name}
    match wish:
        case Tell(facts) if REMEMBER in offered:
            for fact in facts:
                yield call(REMEMBER, {"information_type": fact.key, "information": fact.value})
        case Ask(topic) if SEARCH in offered:
            yield call(SEARCH, {"query": QUERIES.get(topic, topic.replace("_", " "))})
        case Ask(""):
            yield from (call(name, {}) for name in offered if name.startswith("list"))
        case Forget(topic):
            yield from forget_calls(topic, offered)
        case _:
            pass


def forget_calls(topic: str, offered: dict[str, Json]) -> Iterator[Turn]:
    for name, parameters in offered.items():
        if "forget" not in name and "delete" not in name:
            continue
        takes = list(parameters.get("required") or parameters.get("properties") or [])
        if topic == EVERYTHING and not takes:
            yield call(name, {})
            return
        if topic != EVERYTHING and takes:
            yield call(name, {takes[0]: topic})
            return


def of_tool(tool: Any) -> tuple[str, Json]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return "", {}
    parameters = function.get("parameters")
    return str(function.get("name") or ""), parameters if isinstance(parameters, dict) else {}


# What it says.

PHRASES = {
    "name": "your name is {}",
    "city": "you live in {}",
    "age": "you are {} years old",
    "home_town": "you come from {}",
    "allergy": "you are allergic to {}",
    "likes": "you like {}",
    "dislikes": "you dislike {}",
    "note": "you told me: {}",
}
KEPT = re.compile(r"\bI'll remember that (?P<key>[^:\n]+): (?P<value>.+)", re.S)
WITHOUT_CONSENT = re.compile(
    r"^nothing was [^:\n]{1,40}: this person (?:(?P<no>does not want)|has not agreed) to be", re.I
)
"""How tools say it to a model, which is to say it to the person."""
SAID_OF_STORES = re.compile(r"^(\([^()]+\))[ ]*$", re.M)


def from_results(wish: Wish, results: Sequence[str]) -> str:
    """Return an answer in a sentence, from what tools returned and nothing else: data may be older."""
    failed = [each.strip() for each in results if is_failure(each)]
    if failed:
        return f"Sorry, that did not work. {failed[0]}"
    if unwanted := next(filter(None, map(WITHOUT_CONSENT.search, results)), None):
        done = "I know nothing about you" if isinstance(wish, Ask) else "I have not kept that"
        why = "do not want to be remembered" if unwanted["no"] else "have not agreed that I remember you"
        return f"{done}: you {why}. The privacy command changes that."
    match wish:
        case Ask(topic):
            facts = [fact for each in results for fact in facts_in(each)]
            remarks = [remark for each in results for remark in SAID_OF_STORES.findall(each)]
            return " ".join([answer(topic, facts), *remarks])
        case Tell():
            kept = [found for each in results if (found := KEPT.search(each))]
            if kept:
                facts = [Fact(found["key"].strip(), found["value"].strip()) for found in kept]
                return f"Got it, I'll remember that {listed(map(phrase, facts))}."
    return " ".join(each.strip() for each in results)


def without_tools(wish: Wish, known: Sequence[Fact]) -> str:
    match wish:
        case Ask(topic):
            return answer(topic, known)
        case Tell():
            return "Thanks for telling me. I have no way to remember it, though."
        case Forget(topic):
            return (
                "Which one? I forget one thing at a time." if topic == EVERYTHING else "I have no way to forget that."
            )
        case Chat(said):
            return small_talk(said)


def answer(topic: str, facts: Sequence[Fact]) -> str:
    """Return what *facts* say about the topic: those whose key has all of its words, the first of them."""
    if not topic:
        told = dict.fromkeys(map(phrase, facts))
        return f"I remember this about you: {listed(told)}." if told else "I don't know anything about you yet."
    wanted = set(as_key(topic).split("_"))
    for fact in facts:
        if wanted <= set(as_key(fact.key.replace("_", " ")).split("_")):
            said = phrase(fact)
            return f"{said[0].upper()}{said[1:].rstrip('.')}."
    return UNKNOWN


def phrase(fact: Fact) -> str:
    usual = f"your {fact.key.replace('_', ' ')} is"
    before, _, after = PHRASES.get(as_key(fact.key), f"{usual} {{}}").partition("{}")
    return f"{before}{fact.value}{after}"


def listed(parts: Iterable[str]) -> str:
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last


def small_talk(said: str) -> str:
    if not said:
        return "I'm here."
    if re.search(r"\b(?:hi|hello|hey|good (?:morning|evening))\b", said, re.I):
        return "Hello! Tell me something about yourself, and I'll remember it."
    if re.search(r"\bthank(?:s| you)\b", said, re.I):
        return "You're welcome!"
    if said.endswith("?"):
        return "I can't answer that: I only know what you tell me about yourself."
    return "I see. Tell me more!"


def is_failure(result: str) -> bool:
    return re.match(r"\s*(?:error\b|that could not\b)", result, re.I) is not None


# What it reads.

BLOCK = re.compile(
    r"<(?P<tag>[A-Za-z][\w-]*)(?:\s[^<>]*)?>(?P<tagged>.*?)</(?P=tag)\s*>"
    r"|^```[^\n]*\n(?P<fenced>.*?)^```"
    r"|^\[(?P<mark>[^\[\]\n]+)\][^\n]*\n(?P<marked>.*?)^\[(?:end of |/)(?P=mark)\]"
    r"|^[^\w\n]*BEGIN\b[^\n]*\n(?P<begun>.*?)^[^\w\n]*END\b[^\n]*$",
    re.S | re.M,
)
MENTION = re.compile(r"<@[!&]?\d+>")
NAMED = re.compile(r"^(?![^:\n]*\b(?:i|my|me|remember)\b)[^:\n]{1,40}: ", re.I)
SPEAKERS = re.compile(r"\n\n(?=[^:\n]{1,40}: )")
FACT = re.compile(r"^[-*•>\s]*(?:\[[^\]]*\]\s*)?(?P<key>\w[\w -]{0,127}): (?P<value>\S.*)$")
PROVENANCE = re.compile(r"\s*[\[(](?:[^\])]*\d{4}-\d\d|said|told|noted|remembered)[^\])]*[\])]$", re.I)


def spoken(text: str) -> str:
    """Return what of a user's message is said by the person; by the last, where several are named in it."""
    last = SPEAKERS.split(MENTION.sub("", BLOCK.sub("", text)))[-1]
    return NAMED.sub("", last.strip()).strip()


def data_facts(messages: Iterable[Json]) -> list[Fact]:
    """Return the facts in the data blocks of all messages but the model's own, the latest block first."""
    texts = [text_of(each) for each in messages if each.get("role") not in ("assistant", "tool")]
    blocks = [block for text in texts for block in BLOCK.finditer(text)]
    groups = ("tagged", "fenced", "marked", "begun")
    return [fact for block in reversed(blocks) for name in groups for fact in facts_in(block[name] or "")]


def facts_in(text: str) -> list[Fact]:
    """Return the facts of a tool's result or a data block: a JSON object or else a `key: value` a line.

    A key is written small; a line that is set in goes on with the value before.
    """
    lines = text.splitlines()
    facts = [fact for fact in map(json_fact, lines) if fact]
    for line in lines if not facts else ():
        if fact := fact_in(line):
            facts.append(fact)
        elif facts and line.startswith("    "):
            facts[-1] = Fact(facts[-1].key, f"{facts[-1].value} {line.strip()}")
    return facts


def fact_in(line: str) -> Fact | None:
    found = None if line.startswith("    ") else FACT.match(line)
    if not found or found["key"] != found["key"].casefold() or is_failure(line):
        return None
    return Fact(found["key"].strip(), PROVENANCE.sub("", found["value"].strip()))


def json_fact(line: str) -> Fact | None:
    try:
        parsed = json.loads(line.strip().rstrip(","))
    except ValueError:
        return None
    if not isinstance(parsed, dict):
        return None
    keys = [parsed[name] for name in ("key", "information_type", "type") if isinstance(parsed.get(name), str)]
    values = [parsed[name] for name in ("value", "information", "said", "text") if isinstance(parsed.get(name), str)]
    return Fact(keys[0], values[0]) if keys and values else None
