"""What looks like a secret: tokens and keys, by detect-secrets and by what it does not know yet; cards; passwords.

What is meant for one place only, such as a commit's hash, an order's number or a phone's, is none. Every pattern takes
steps in proportion to the text, whatever it says.
"""

from __future__ import annotations

import base64
import importlib
import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

from tools.invisible import bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Of detect-secrets only the patterns are used: nothing is read from disk and nobody is called. Left out are those that
# take quadratic time, and Artifactory's, to whom APEXLEGENDS is a password.
_DETECTORS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "mailchimp": "MailchimpDetector",
    "private_key": "PrivateKeyDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
_HINT = re.compile(r"\S{16}|://|xox|PRIVATE|PuTTY", re.IGNORECASE)
"""What stands in every text in which one of them finds something: without it they need not be loaded."""

_KINDS = {
    "AWS Access Key": "an AWS access key",
    "Azure Storage Account access key": "an Azure storage key",
    "Basic Auth Credentials": "a password in an address",
    "Discord Bot Token": "a Discord token",
    "GitHub Token": "a GitHub token",
    "GitLab Token": "a GitLab token",
    "Private Key": "a private key",
    "PyPI Token": "a PyPI token",
    "SendGrid API Key": "a SendGrid key",
    "Slack Token": "a Slack token",
    "Stripe Access Key": "a Stripe key",
}

_BEGINNINGS = (  # of tokens that no word begins with, so that they are known also where they were cut by spaces
    ("a GitHub token", r"gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}"),
    ("a GitLab token", r"gl(?:pat|dt|ft|soat|rt|ptt|cbt)-[A-Za-z0-9_-]{20,255}"),
    ("an API key", r"sk-(?:proj|svcacct|admin|ant|or-v1|live|test)-[A-Za-z0-9_-]{20,255}"),
    ("an API key", r"sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}"),
    ("a Google API key", r"AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{30,255}"),
    ("a Stripe key", r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}|whsec_[A-Za-z0-9+/]{24,255}"),
    ("a Slack token", r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{16,255}|xapp-\d-[A-Za-z0-9-]{20,255}"),
    ("a SendGrid key", r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    ("an npm token", r"npm_[A-Za-z0-9]{36}"),
    ("a PyPI token", r"pypi-Ag[A-Za-z0-9_-]{50,255}"),
    ("a Hugging Face token", r"hf_[A-Za-z0-9]{30,255}"),
    ("a DigitalOcean token", r"do[opr]_v1_[a-f0-9]{64}"),
    ("a Discord token", r"mfa\.[A-Za-z0-9_-]{60,255}"),
    ("a Discord webhook", r"discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d{15,20}/[A-Za-z0-9_-]{40,255}"),
    ("a private key", r"BEGIN[A-Z0-9]{0,20}PRIVATEKEY|AGE-SECRET-KEY-1[A-Z0-9]{40,255}"),
)
_BEGUN = re.compile("|".join(f"(?P<k{number}>{pattern})" for number, (_, pattern) in enumerate(_BEGINNINGS)))
_SK = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,255}")
_DISCORD = re.compile(r"(?=([MNO][A-Za-z0-9_-]{23,25})\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27})")
_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{6,2048}\.eyJ[A-Za-z0-9_-]{2,4096}\.?")
_JWT_JOINED = re.compile(r"eyJ[A-Za-z0-9_-]{10,80}\.eyJ[A-Za-z0-9_-]{10}")

_SPACE = re.compile(r"\s+")
_DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458\u04bb\u0501\u051b\u051d\u0410\u0412\u0415\u041a"
    "\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0405\u0406\u0408\u03bf\u03bd\u03b9\u03ba\u03c1\u03b1\u03c4\u03c5"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u0578\u057d\u0585\u3002",
    "aeopcyxsijhdqwABEKMHOPCTXSIJovikpatuABEZHIKMNOPTYXnuo.",
)
"""Letters of Cyrillic, Greek and Armenian that look like Latin ones."""

_DIGITS = re.compile(r"(?<![\d+])\d(?:[ \t\n._,/|*-]{0,3}\d){12,}")
_GROUP = re.compile(r"\d+")
_ISSUERS = re.compile(
    r"(?P<v>4)|(?P<m>5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)|(?P<a>3[47])|(?P<d>30[0-5]|3[689])"
    r"|(?P<o>6011|64[4-9]|65|35(?:2[89]|[3-8])|220[0-4]|60|8[12]|508)|(?P<u>62)|(?P<e>5018|5020|5038|5893|6304|67)"
)
_LENGTHS = {"v": (16, 19), "m": (16,), "a": (15,), "d": (14, 16), "o": (16, 19), "u": (16, 19), "e": (16, 18, 19)}
_VALUE = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLED = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
_NUMBERS_MAX = 2_000

_NAMES = (
    r"pass ?word|pass ?code|pass ?phrase|passwd|pwd|(?<!\w)pw(?!\w)|passwort|kennwort|contrase\u00f1a|mot de passe"
    r"|senha|wachtwoord|l\u00f6senord|has\u0142o|parola|\u015fifre|jelsz\u00f3|heslo|salasana|kata sandi"
    r"|m\u1eadt kh\u1ea9u|\u043f\u0430\u0440\u043e\u043b\u044c|\u03ba\u03c9\u03b4\u03b9\u03ba\u03cc\u03c2"
    r"|\u05e1\u05d9\u05e1\u05de\u05d4|\u0643\u0644\u0645\u0629 (?:\u0627\u0644)?\u0645\u0631\u0648\u0631"
    r"|\u5bc6\u7801|\u5bc6\u78bc|\u30d1\u30b9\u30ef\u30fc\u30c9|\ube44\ubc00\ubc88\ud638|\u0e23\u0e2b\u0e31\u0e2a\u0e1c\u0e48\u0e32\u0e19"
    r"|\u092a\u093e\u0938\u0935\u0930\u094d\u0921"
)
_KEY_NAMES = (
    r"(?:api|access|secret|private|auth|client|account|encryption|signing|license)[ _-]?(?:key|token|secret)(?: id)?"
    r"|secret[ _-]access[ _-]key|bearer|token"
)
_SIGN = r"[\"'`\u2019\u201d)]{0,2} ?[:=\uff1a]{1,9}>? ?"
_SAYS = r" (?:is|was|ist|es|est|\u00e9|\u0435\u0441\u0442\u044c) "
_IS = rf"(?:{_SIGN}|[\"'`\u2019\u201d)]{{0,2}}{_SAYS})"
_FOR = r"(?: (?:for|to|of|on|at|f\u00fcr|de|del|du|da|\u043e\u0442)(?: [^\s:=]{1,30}){1,3}?)?"
_PASSWORD = re.compile(rf"(?:{_NAMES}){_FOR}(?:{_IS}|(?<=[\u0e00-\uffff]) ?\u662f ?)([^\s]{{4,200}})", re.IGNORECASE)
_KEYED = re.compile(rf"(?<!\w)(?:{_KEY_NAMES}){_FOR}{_IS}[\"'`]?([A-Za-z0-9+/=_.~-]{{16,500}})", re.IGNORECASE)
_CODE = re.compile(r"(?<!\w)(?:pin|cvv2?|cvc2?)(?: (?:code|number))?(?::| is|=) ?(\d{3,4})(?!\d)", re.IGNORECASE)
_SEED = re.compile(
    r"(?:seed|recovery|mnemonic|secret) (?:phrase|words)[^a-z]{0,3}(?:is |are |: ?)?(?:[a-z]{3,8}[ ,]{1,2}){11}[a-z]{3}"
)
_WORD = r"[\"'`\u201c\u201e]?([^\s\"'`\u201c\u201d\u201e,;]{6,200})[\"'`\u201d\u201c]?"
_ASIDE_OF = r"(?: \([^()]{1,40}\))?"
_SIGNED = re.compile(
    rf"(?:{_NAMES}){_FOR}{_ASIDE_OF}(?:{_SIGN}| ?(?:->|\u2192) ?){_WORD}(?=[.!?]{{0,3}}(?:$|[,;)]| [(|/-]))",
    re.IGNORECASE,
)
_SPOKEN = re.compile(rf"(?:{_NAMES}){_FOR}{_SAYS}{_WORD}[.!?]{{0,3}}$", re.IGNORECASE)
_BESIDE = re.compile(rf"(?:{_NAMES}) {_WORD}", re.IGNORECASE)
_SIGNED_TOKEN = re.compile(
    rf"(?<!\w)(?:{_KEY_NAMES}|secret|pin){_SIGN}{_WORD}(?=[.!?]{{0,3}}(?:$|[,;)]))", re.IGNORECASE
)
_ONE_WORD = """
accepted anonymous awesome bitwarden broken browser changed correct dashlane default deleted different disabled
easiest easier encrypted exists expired family forget forgot forgotten fridge guessable hacked hashed hidden important
incorrect insecure invalid keepass keepassxc keychain lastpass leaked longer manager memorised memorized missing
nothing notebook nowhere number optional outdated pending personal please postit private proton protected public
random reallylong redacted refused rejected removed required revoked rotated saved secret secure secured shared
shorter simple sometimes somewhere stolen stored strong stronger stupid tomorrow trivial unchanged unknown unsafe
updated vaulted wallet weaker written yubikey 1password keepass2 aucune changee change desconocida geaendert geandert
geheim inconnu keines keinen ninguna olvidada oublie unbekannt unveraendert unverandert vergessen
"""
_REMARKS = frozenset(_ONE_WORD.split())
"""What is said of a password in one word, or where it is: such a word is none."""
_REMARK_ENDS = ("ed", "ing", "ous", "ible", "able", "less", "ful", "ly")
_LONGER_THAN_WORDS = 16
_HUMP = re.compile(r"[a-z][A-Z]")
_COUNTED = re.compile(r"\d{1,2}[a-z]{1,6}")
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}")
_ASIDE = "\"'`\u201c\u201d.,;:!?()[]*_~|"
_PASSWORD_KEY = re.compile(rf"(?:{_NAMES})\Z", re.IGNORECASE)


def kind_of_secret(key: str, value: str) -> tuple[str, bool] | None:
    """Return which kind of secret seems to be in the two, such as "a GitHub token", and whether *key* alone has it."""
    if kind := _kind(key) or _token_in(key):
        return kind, True
    kind = _kind(f"{key.replace('_', ' ')}: {value}") or _under_its_name(key, value) or _token_in(value)
    return (kind, False) if kind else None


def detector_is_loaded() -> bool:
    """Return whether the library is in memory: loading it takes a third of a second, once, where it may be needed."""
    return _detectors.cache_info().currsize > 0


def _kind(text: str) -> str:
    """Return the kind of the first secret in *text*; empty if there is none."""
    seen = bare(unicodedata.normalize("NFKC", text))
    latin = seen if seen.isascii() else _DASHES.sub("-", seen.translate(_ALIKE))
    for look in (_known, _begun_and_cut, _card):
        if kind := look(latin):
            return kind
    line = _SPACE.sub(" ", seen)
    if any(_is_no_word(found[1]) for found in _PASSWORD.finditer(line)) or _CODE.search(line):
        return "a password"
    if any(_holds_a_password(" ".join(one.split())) for one in {line, *seen.splitlines()}):
        return "a password"
    if any(_is_mixed(found[1]) for found in _KEYED.finditer(_SPACE.sub(" ", latin))):
        return "a key or token"
    return "a recovery phrase" if _SEED.search(line.casefold()) else ""


def _under_its_name(key: str, value: str) -> str:
    """Return "a password" where *key* says that *value*, one word, is one."""
    name = " ".join(re.split(r"[\s_]+", unicodedata.normalize("NFKC", bare(key))))
    word = bare(value).strip()
    named = _PASSWORD_KEY.search(name.strip()) is not None
    return "a password" if named and not _SPACE.search(word) and _is_telling(word) else ""


def _holds_a_password(line: str) -> bool:
    """Return whether *line* says a password in one word, be it of letters alone."""
    return (
        any(_is_telling(found[1]) for found in _SIGNED.finditer(line))
        or any(_is_telling(found[1]) and not found[1].endswith(_REMARK_ENDS) for found in _SPOKEN.finditer(line))
        or any(_is_telling(found[1]) and _is_mixed_word(found[1]) for found in _BESIDE.finditer(line))
    )


def _token_in(text: str) -> str:
    """Return "a key or token" where *text* names one and says it, with a sign between.

    What is called a secret or a token is often none: a short plain word passes.
    """
    lines = unicodedata.normalize("NFKC", bare(text)).splitlines()
    found = (word for line in lines for word in _SIGNED_TOKEN.findall(" ".join(line.split())))
    return "a key or token" if any(_is_telling(word) and _is_odd(word) for word in found) else ""


def _is_telling(said: str) -> bool:
    """Return whether *said*, one word, may be a password: it is long enough, and no remark about one."""
    word = said.strip(_ASIDE)
    plain = "".join(c for c in unicodedata.normalize("NFD", word.casefold()) if not unicodedata.combining(c))
    return (
        len(word) >= 6
        and len(set(plain)) > 2
        and max(plain) < "\u0e00"  # a script without spaces between words: that may be a whole sentence
        and plain not in _REMARKS
        and "://" not in plain
        and not _DATE.fullmatch(plain)
    )


def _is_mixed_word(said: str) -> bool:
    word = said.strip(_ASIDE).casefold()
    return any(map(str.isalpha, word)) and any(map(str.isdigit, word)) and not _COUNTED.fullmatch(word)


def _is_odd(said: str) -> bool:
    """Return whether *said* is written as no word is: with digits, signs, or capitals within, or longer than any."""
    parts = re.split(r"[-'\u2019./]", said.strip(_ASIDE))  # of "Bartholomew-James", each
    return any(
        part != "" and (not part.isalpha() or len(part) >= _LONGER_THAN_WORDS or _HUMP.search(part) is not None)
        for part in parts
    )


def _known(text: str) -> str:
    """Return what the library finds, and what is of the same kind: whole, in one piece."""
    if not _HINT.search(text):
        return ""
    if any(_is_mixed(found[0]) for found in _SK.finditer(text)):
        return "an API key"
    if _JWT.search(text):
        return "a JSON web token"
    for detector in _detectors():
        for _ in detector.analyze_string(text):
            return _KINDS.get(detector.secret_type, f"a {detector.secret_type}")
    return ""


def _begun_and_cut(text: str) -> str:
    """Return what is known by how it begins, though spaces or lines cut it."""
    joined = _SPACE.sub("", text)
    for found in _BEGUN.finditer(joined):
        kind = _BEGINNINGS[int(str(found.lastgroup)[1:])][0]
        if kind == "a private key" or _has_digit(found[0]):
            return kind
    if any(_is_snowflake(found[1]) for found in _DISCORD.finditer(joined)):
        return "a Discord token"
    return "a JSON web token" if _JWT_JOINED.search(joined) else ""


def _card(text: str) -> str:
    """Return "a card number" if *text* holds one: of an issuer, of its length, with a right check digit."""
    text = _ascii_digits(text)
    for found in _DIGITS.finditer(text):
        if any(_is_card(number) for number in _numbers(found[0])):
            return "a card number"
    return ""


def _numbers(written: str) -> Iterator[bytes]:
    """Yield the numbers that *written* may hold: they begin and end where a group of digits does."""
    groups = [group.encode() for group in _GROUP.findall(written)[:_NUMBERS_MAX]]
    for first in range(len(groups)):
        number = b""
        for last in range(first, len(groups)):
            number += groups[last]
            if len(number) > 19:
                break
            if len(number) >= 14 and _is_grouped([len(group) for group in groups[first : last + 1]]):
                yield number


def _is_grouped(sizes: list[int]) -> bool:
    """Return whether somebody may write a card in groups of these sizes; nobody writes dates and phones like that."""
    return sizes[0] >= 4 or len(set(sizes[:-1])) == 1


def _is_card(number: bytes) -> bool:
    issuer = _ISSUERS.match(number.decode())
    if issuer is None or len(number) not in _LENGTHS[str(issuer.lastgroup)]:
        return False
    backwards = number[::-1]
    total = sum(backwards[0::2].translate(_VALUE)) + sum(backwards[1::2].translate(_DOUBLED))
    return total % 10 == 0 and len(set(number)) > 1


def _ascii_digits(text: str) -> str:
    """Return *text* with the digits of every script as those of ours."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def _is_snowflake(part: str) -> bool:
    """Return whether *part* stands for a user's id, as the first part of a Discord token does."""
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).isdigit()
    except ValueError:
        return False


def _is_no_word(said: str) -> bool:
    """Return whether *said* is rather a password than the next word of a sentence."""
    word = said.strip(_ASIDE)
    letters, digits = sum(map(str.isalpha, word)), sum(map(str.isdecimal, word))
    if len(word) < 4 or _DATE.fullmatch(word):
        return False
    return digits >= 4 or (letters > 0 and digits > 0) or (len(word) >= 6 and any(c in "!@#$%^&*+=?" for c in word))


def _is_mixed(token: str) -> bool:
    """Return whether *token* is no words joined by dashes: it has digits among its letters."""
    return sum(map(str.isdigit, token)) >= 2 and any(map(str.isalpha, token)) and "://" not in token


def _has_digit(token: str) -> bool:
    return any(map(str.isdigit, token.partition("_")[2] or token))


@cache
def _detectors() -> tuple[Any, ...]:
    """Return the library's detectors: those of one kind each."""
    made = []
    for name, of in _DETECTORS.items():
        detector: Callable[[], Any] = getattr(importlib.import_module(f"detect_secrets.plugins.{name}"), of)
        made.append(detector())
    return tuple(made)
