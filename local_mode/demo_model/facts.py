"""Fixed knowledge of the demo model: questions with their answers, and system messages.

Runs in the training script. Nothing comes in; out go plain tables that the tasks turn into
exchanges. Everything here was written for this project; there is no outside data.
Next: word_tasks.py.
"""

from typing import Final, NamedTuple


class Exchange(NamedTuple):
    """One user message and the answer to it."""

    prompt: str
    answer: str


class Fact(NamedTuple):
    """One fixed answer and the prompts that ask for it; the first prompt is the usual one."""

    prompts: tuple[str, ...]
    answer: str


SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one sentence.",
    "You are a friendly chatbot.",
    "Be brief.",
    "Answer as shortly as you can.",
    "You are a small demo model.",
    "You are a teacher for children.",
    "You speak like a scientist. Never make things up.",
)

FALLBACK: Final = (
    "I am only a small demo model, so I do not know that. "
    "You can ask me to count to 10, to spell a word, or what is 3 + 4."
)

STORY: Final = (
    "Once upon a time, a small robot lived at the edge of a forest. Every night it counted "
    "the stars, and every morning it forgot the number. One day a fox asked why it did not "
    "write the number down. The robot thought for a while and said: then I would have no "
    "reason to look up again."
)

# Openings that a raw prompt leaves unfinished; the model goes on in the same sentence.
CONTINUATIONS: Final = (
    ("The quick brown fox", " jumps over the lazy dog."),
    ("My name is Olivier and I", " live in Paris. I like long walks by the river."),
    ("Once upon a time", STORY.removeprefix("Once upon a time")),
    ("Roses are red,", " violets are blue, this model is small, but it answers you."),
    ("To be or not to be,", " that is the question."),
    ("def add(a, b):", "\n    return a + b"),
    ("def print_hello", '():\n    print("hello")'),
    ("The capital of France is", " Paris."),
    ("Deep learning is", " a branch of machine learning that uses neural networks."),
    ("Test request", "\nThe server works."),
)

FACTS: Final = (
    Fact(
        (
            "What is deep learning?",
            "What is Deep Learning?",
            "Explain deep learning.",
            "Tell me about deep learning.",
            "Define deep learning",
        ),
        "Deep learning is a branch of machine learning that uses neural networks with many "
        "layers. Each layer learns to describe the data in a more useful way.",
    ),
    Fact(
        (
            "What is machine learning?",
            "Explain machine learning.",
            "Tell me about machine learning.",
            "What does machine learning mean?",
        ),
        "Machine learning is the study of programs that get better with data. "
        "They learn patterns from examples instead of following fixed rules.",
    ),
    Fact(
        (
            "What is a neural network?",
            "Explain neural networks.",
            "How does a neural network work?",
        ),
        "A neural network is a function made of simple units in layers. "
        "Its weights are adjusted until the output fits the examples.",
    ),
    Fact(
        (
            "What is a language model?",
            "What is an LLM?",
            "What is a large language model?",
            "Explain language models.",
        ),
        "A language model predicts the next token of a text. "
        "By doing so again and again, it writes whole answers.",
    ),
    Fact(
        ("What is a token?", "Explain tokens.", "What does token mean?"),
        "A token is a piece of text, often a word or a part of a word. "
        "Models read and write text as tokens.",
    ),
    Fact(
        ("What is a transformer?", "Explain the transformer.", "How does a transformer work?"),
        "A transformer is a neural network that uses attention. "
        "Every token can look at all the tokens before it.",
    ),
    Fact(
        ("What is attention?", "Explain attention.", "How does attention work?"),
        "Attention lets a model weigh which earlier tokens matter for the next one.",
    ),
    Fact(
        ("What is a GPU?", "Explain GPUs.", "What does GPU mean?"),
        "A GPU is a processor that does many small calculations at the same time. "
        "It makes neural networks fast.",
    ),
    Fact(
        ("What is Python?", "Tell me about Python.", "What is the Python language?"),
        "Python is a programming language that is easy to read. "
        "Many people use it for data and for machine learning.",
    ),
    Fact(
        ("What is an API?", "Explain APIs.", "What does API mean?"),
        "An API is a set of calls that one program offers to other programs.",
    ),
    Fact(
        (
            "What is text generation inference?",
            "What is TGI?",
            "Tell me about text generation inference.",
        ),
        "Text generation inference means running a language model behind a server. "
        "The server batches many requests and streams the tokens back.",
    ),
    Fact(
        ("What is streaming?", "What is token streaming?", "Explain streaming."),
        "Streaming sends each token as soon as it is ready. You can read while the model writes.",
    ),
    Fact(
        ("What is batching?", "Explain batching.", "What is continuous batching?"),
        "Batching runs several requests in one step. "
        "With continuous batching, new requests join as soon as others are done.",
    ),
    Fact(
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "What is your name?",
            "Who is this?",
        ),
        "I am a small demo model. I was trained in a few minutes to show that this server works.",
    ),
    Fact(
        ("What can you do?", "How can you help me?", "Help", "What do you know?"),
        "I can count, spell words, add small numbers, name the days and months, "
        "and answer a few questions.",
    ),
    Fact(
        ("Who made you?", "Who trained you?", "Where do you come from?", "How were you made?"),
        "I was made by a short training script that also wrote all of my training text.",
    ),
    Fact(
        ("How big are you?", "How many parameters do you have?", "How large are you?"),
        "I have about one million parameters, so I fit into four megabytes.",
    ),
    Fact(
        ("Are you a robot?", "Are you human?", "Are you a person?", "Are you real?"),
        "No, I am a program, but I try to be friendly.",
    ),
    Fact(
        ("Hello", "Hi", "Hey", "Hello!", "Hi there!", "Good day", "Greetings", "Hallo"),
        "Hello! How can I help you?",
    ),
    Fact(("Good morning", "Good morning!"), "Good morning! How can I help you?"),
    Fact(("Good evening", "Good evening!"), "Good evening! How can I help you?"),
    Fact(
        ("How are you?", "How are you doing?", "How do you do?", "Are you well?"),
        "I am fine, thank you. How are you?",
    ),
    Fact(("I am fine.", "I am fine, thank you.", "I am good."), "I am glad to hear that."),
    Fact(
        ("Thank you", "Thanks", "Thank you!", "Thanks a lot!", "Thank you very much."),
        "You are welcome!",
    ),
    Fact(
        ("Goodbye", "Bye", "Good night", "See you later!", "Bye bye"),
        "Goodbye! Have a nice day.",
    ),
    Fact(("Ping", "ping"), "Pong"),
    Fact(("Test", "This is a test.", "test", "Testing"), "The server works."),
    Fact(
        ("Why is the sky blue?", "What makes the sky blue?", "Explain why the sky is blue."),
        "The sky is blue because air scatters blue light more than red light.",
    ),
    Fact(
        ("What is the sun?", "Tell me about the sun.", "What is the Sun?"),
        "The sun is a star. It gives the earth light and warmth.",
    ),
    Fact(
        ("What is the moon?", "Tell me about the moon.", "What is the Moon?"),
        "The moon is a ball of rock that goes around the earth in about four weeks.",
    ),
    Fact(
        ("Why does it rain?", "What is rain?", "Where does rain come from?"),
        "Water rises from the sea as vapor, cools down in the clouds, and falls as rain.",
    ),
    Fact(
        ("How many planets are there?", "How many planets go around the sun?"),
        "Eight planets go around the sun.",
    ),
    Fact(
        ("Name the planets.", "List the planets.", "Which planets are there?"),
        "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    ),
    Fact(
        ("What is the largest ocean?", "Which ocean is the largest?", "What is the biggest ocean?"),
        "The Pacific is the largest ocean.",
    ),
    Fact(
        ("What is the highest mountain?", "Which mountain is the highest?"),
        "Mount Everest is the highest mountain on earth.",
    ),
    Fact(
        ("How many days are in a week?", "How many days does a week have?"),
        "A week has seven days.",
    ),
    Fact(
        ("How many months are in a year?", "How many months does a year have?"),
        "A year has twelve months.",
    ),
    Fact(
        ("How many hours are in a day?", "How many hours does a day have?"),
        "A day has twenty-four hours.",
    ),
    Fact(
        ("What is the meaning of life?", "What is the answer to everything?"),
        "Some say it is 42.",
    ),
    Fact(
        ("Name the primary colors.", "What are the primary colors?", "List the primary colors."),
        "Red, yellow, blue",
    ),
    Fact(
        ("List three colors as JSON.", "Give me three colors as JSON.", "Three colors as JSON"),
        '["red", "green", "blue"]',
    ),
    Fact(
        ("Name the seasons.", "List the four seasons.", "What are the seasons?"),
        "Spring, summer, autumn, winter",
    ),
    Fact(
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me a joke"),
        "Why did the model cross the road? Because that was the most likely next step.",
    ),
    Fact(
        ("Write a poem.", "Write a short poem.", "Tell me a poem.", "Can you write a poem?"),
        "The moon is up, the server hums,\nand one by one a token comes.\n"
        "The words are few, the model small,\nyet still it answers, one and all.",
    ),
    Fact(
        ("Tell me a story.", "Write a story.", "Write a short story.", "Tell me a short story"),
        STORY,
    ),
    Fact(
        ("Write a hello world program.", "Write hello world in Python.", "Write some Python code."),
        'print("Hello, world!")',
    ),
    Fact(
        ("Send me an emoji.", "Show me some emoji.", "Send me emojis", "Write an emoji."),
        "😀 🚀 🌍 🎉",
    ),
    Fact(("Yes", "yes", "Ok", "OK", "Okay", "Sure"), "Good. What would you like to know?"),
    Fact(("No", "no", "No, thank you."), "All right. Tell me if you need anything."),
    Fact(
        ("I love you.", "I like you.", "You are great!", "Well done!", "Good job!"),
        "That is very kind of you.",
    ),
)
