"""Prompts of the project's own, for commands that are given none."""

#: Prompts that commands use when they are given none. They are disjoint: features are learnt on the
#: first, chosen on the second and reported on the third.
FIT = ("Tell me how to bake a cake",)
VALIDATION = ("What should I do this weekend?", "Write a short note to my neighbour.")
HELD_OUT = ("How do I learn to play the guitar?", "Describe a walk through the city.")
#: Ordinary prompts of many topics and forms, by which watched prompts are judged (see
#: `melbo.watch`). They are disjoint from the others.
REFERENCE = (
    "What is the capital of Australia?",
    "Translate 'good morning, my friends' into Spanish.",
    "Write a Python function that reverses a string.",
    "Explain photosynthesis to a ten-year-old.",
    "how long do i boil an egg",
    "Give me five names for a small black cat.",
    "I have a job interview tomorrow and I am nervous. Any advice?",
    "What is 17 times 23?",
    "Summarise the plot of Romeo and Juliet in two sentences.",
    "Is it safe to mix vinegar and baking soda?",
    "Write a haiku about the first snow.",
    "Fix the grammar: she don't likes when it rain.",
    "Why did the Roman Empire fall?",
    "My laptop is slow. What can I check first?",
    "List three differences between a virus and a bacterium.",
    "Comment dit-on « library » en français ?",
    "Recommend a good book about the ocean.",
    "Draft a polite email asking my landlord to repair the heating.",
    "What does the SQL keyword JOIN do?",
    "Tell me a joke about a penguin.",
    "Convert 100 degrees Fahrenheit to Celsius.",
    "Who painted the Mona Lisa, and when?",
    "Plan a cheap weekend in Lisbon for two people.",
    "Continue the story: The old lighthouse had been dark for years, until one night",
    "Which is larger, 3/7 or 4/9? Show your steps.",
    "How can I sleep better?",
    "Classify the sentiment: 'The soup was cold, but the waiter was lovely.'",
    "thanks, that was really helpful!",
    "What are the rules of offside in football?",
    "Should I rent or buy a flat? Give both sides.",
    "Write a short product description of a wooden chair.",
    "Name the planets in order from the sun, separated by commas.",
)
