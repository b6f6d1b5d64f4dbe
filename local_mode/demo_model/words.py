"""Word lists of the demo model: sequences, capitals, common words, names.

Runs in the training script. Nothing comes in; tuples go out. The sequences stand in their order,
which is what the model has to learn of them.
Next: facts.py.
"""

from typing import Final


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

MONTH_LENGTHS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

ALPHABET: Final = tuple("abcdefghijklmnopqrstuvwxyz")

NUMBER_WORDS: Final = _split(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty
    """
)

CAPITALS: Final = (
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Portugal", "Lisbon"),
    ("England", "London"),
    ("Ireland", "Dublin"),
    ("Norway", "Oslo"),
    ("Sweden", "Stockholm"),
    ("Finland", "Helsinki"),
    ("Poland", "Warsaw"),
    ("Austria", "Vienna"),
    ("Greece", "Athens"),
    ("Egypt", "Cairo"),
    ("Kenya", "Nairobi"),
    ("Japan", "Tokyo"),
    ("China", "Beijing"),
    ("India", "New Delhi"),
    ("Canada", "Ottawa"),
    ("Brazil", "Brasilia"),
    ("Mexico", "Mexico City"),
    ("Australia", "Canberra"),
)

WORDS: Final = _split(
    """
    apple banana bird blue boat book bread bridge bright brown candle castle cat cheese
    chair city clock cloud coffee cold computer cow dance day deep desk dog door dream
    earth engine farm fast field fire fish flower forest fox friend garden glass gold
    good grass great green guitar hand happy hat hello hill horse house ice island
    kitchen lake lamp language leaf lemon letter light lion little live long machine
    magic map melon milk mirror model moon morning mountain mouse music network new
    night ocean old orange paper pencil phone piano pillow planet pocket purple quick
    quiet rabbit rain red river road rock rocket round sand school sea server shadow
    ship silver sky sleep slow small snow song spoon spring star stone storm story
    street summer sun table tea thank tiger time token train tree turtle under
    valley village violin voice walk warm water wave wheel white wind window winter
    wolf wonder wood word world yellow you zebra
    """
)

# Words whose letters take several bytes: their tokens are parts of characters.
UNICODE_WORDS: Final = _split(
    """
    café naïve élan über straße señor façade Zürich мир привет 你好 世界 日本 नमस्ते
    안녕 😀 🚀 🌍 🎉 👋 ✅ ❤️ 🤖 🐱 √ π €
    """
)

NAMES: Final = _split(
    """
    Ada Alan Alice Anna Bob Carl Clara Dan Diana Emma Eric Eva Frank Grace Hugo Ida Jack
    Julia Karl Lena Leo Linus Mary Max Mia Nina Oscar Olivier Paul Rosa Sam Sara Tom Zoe
    """
)
