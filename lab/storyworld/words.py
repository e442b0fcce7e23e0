"""The vocabulary of storyworld, as plain tables: names, kinds of people and animals, places, things, food.

Everything here is data. A line of a table reads `noun: what can be done with it, how it looks, where it belongs`; the
code that uses the tables is in world.py (the state), plots.py (what happens) and telling.py (the sentences).
"""

GIRLS = """
Amina Anna Aiko Alba Amara Anika Asha Astrid Aylin Beatriz Bea Bella Bianca Binta Bruna Carla Carmen Celia Chiara
Chloe Clara Dalia Dana Daphne Dina Dora Edith Elena Elif Elsa Emma Esra Ester Eva Farah Fatou Fern Fiona Flora Freya
Frida Gita Grace Greta Hana Hanna Hazel Heidi Helga Ida Ines Ingrid Iris Isha Ivy Jana Jasmine Jia Joy Julia Juna
Kaia Kamala Karin Kavya Keiko Kiri Klara Lan Lara Laila Leila Lena Lila Lily Lin Lola Lotte Lucia Lulu Luz Maia Maja
Malia Mara Maren Mariam Marta Maya Mei Mila Mina Mira Molly Nadia Naomi Nara Nell Nia Nika Nina Noor Nora Olga Olive
Paloma Petra Pia Pilar Polly Poppy Priya Rani Reina Rosa Rosie Ruby Ruth Sadia Saga Salma Sana Sara Selma Sena Signe
Sita Sofia Sonja Suki Sunita Susan Tala Talia Tara Thea Tilda Tina Uma Vera Vida Viola Wanda Wendy Willa Xenia Yara
Yasmin Yoko Yuki Zahra Zara Zelda Zoe Zora
""".split()

BOYS = """
Abel Adam Adil Ahmed Akio Alan Ali Anders Anton Arjun Arlo Aron Arun Axel Bao Basil Ben Bilal Bjorn Bo Boris Bruno
Carlos Cem Chen Cosmo Dan Dario David Dev Diego Dong Duc Edgar Eli Elio Emil Emre Enzo Eric Ezra Farid Felix Finn
Franz Fred Gabriel Gil Gustav Hakim Hamid Hans Hari Hassan Henry Hiro Hugo Ibrahim Igor Ilya Imran Isaac Ivan Jack
Jakob Jamal Jan Javi Jin Joel Jonas Jorge Josef Juan Jun Kai Kamal Karl Kenji Kiran Kofi Kwame Lars Leo Levi Liam
Luca Lukas Luis Mads Malik Manu Marco Mario Mateo Matti Max Miguel Milo Min Mohan Musa Nabil Neel Nico Niels Noah
Odin Olaf Oliver Omar Oscar Otto Pablo Paolo Pavel Pedro Per Peter Pip Rafael Raj Ravi Remy Rico Rohan Roman Rui
Sami Samir Sandro Sasha Sef Silas Simon Sione Sven Taro Tariq Tavi Theo Tim Timo Tito Tobias Tomas Tuan Umar Victor
Vikram Viktor Waldo Wei Will Yan Yusuf Zach Zaid Zeno
""".split()

# Animals that can be heroes, friends or helpers, and what they are good at.
ANIMALS = {
    "fox": "sniff",
    "rabbit": "dig",
    "squirrel": "climb",
    "mouse": "squeeze",
    "hedgehog": "squeeze",
    "bear": "push",
    "owl": "fly",
    "crow": "fly",
    "duck": "swim",
    "otter": "swim",
    "beaver": "swim",
    "badger": "dig",
    "mole": "dig",
    "frog": "swim",
    "monkey": "climb",
    "cat": "climb",
    "dog": "dig",
    "goat": "push",
    "pony": "push",
    "donkey": "push",
    "sparrow": "fly",
    "turtle": "swim",
    "lizard": "squeeze",
    "elephant": "push",
    "penguin": "swim",
    "parrot": "fly",
    "raccoon": "climb",
    "goose": "fly",
    "lamb": "push",
    "kitten": "climb",
    "puppy": "dig",
    "chipmunk": "squeeze",
    "weasel": "squeeze",
    "swan": "swim",
    "seagull": "fly",
    "koala": "climb",
}
YOUNG = {
    "duck": "duckling",
    "cat": "kitten",
    "dog": "puppy",
    "owl": "owlet",
    "bear": "bear cub",
    "fox": "fox cub",
    "goat": "kid goat",
    "rabbit": "baby rabbit",
    "sparrow": "baby sparrow",
    "turtle": "baby turtle",
    "otter": "otter pup",
    "goose": "gosling",
    "hedgehog": "baby hedgehog",
    "squirrel": "baby squirrel",
    "mouse": "baby mouse",
    "swan": "baby swan",
    "lizard": "baby lizard",
}
CRIES = {
    "duck": "quack",
    "cat": "meow",
    "dog": "whimper",
    "owl": "hoot",
    "bear": "whine",
    "fox": "yelp",
    "goat": "bleat",
    "rabbit": "squeak",
    "sparrow": "chirp",
    "turtle": "sniff",
    "otter": "squeak",
    "goose": "honk",
    "hedgehog": "snuffle",
    "squirrel": "chatter",
    "mouse": "squeak",
    "swan": "peep",
    "lizard": "sniff",
}

# Grown-ups: where they work.
ELDERS = {
    "baker": ("bakery", "kitchen", "market"),
    "farmer": ("barn", "field", "orchard", "henhouse", "well", "vegetable garden", "pond"),
    "fisher": ("harbor", "pier", "beach", "rock pool", "lake"),
    "gardener": ("garden", "park", "orchard", "vegetable garden", "village green"),
    "teacher": ("school", "library", "playground", "village green"),
    "miller": ("mill", "bridge", "field", "stream"),
    "carpenter": ("workshop", "shed", "yard", "boathouse"),
    "tailor": ("shop", "market", "square", "attic", "bedroom"),
    "shepherd": ("meadow", "hill", "valley", "pasture", "dune"),
    "postman": ("square", "bridge", "street", "porch", "valley"),
    "doctor": ("square", "street", "school", "bedroom"),
    "painter": ("attic", "square", "beach", "cliff", "sea cave", "waterfall", "dune"),
    "clockmaker": ("shop", "street", "tower"),
    "beekeeper": ("meadow", "orchard", "garden", "berry patch", "clearing", "hollow log"),
    "weaver": ("workshop", "market", "hut"),
    "potter": ("workshop", "market", "yard", "cellar"),
    "musician": ("square", "park", "market", "porch"),
    "sailor": ("harbor", "pier", "lighthouse", "boathouse", "sea cave"),
    "librarian": ("library", "school"),
    "groom": ("stable", "barn", "pasture"),
    "cook": ("kitchen", "bakery", "cellar", "shed"),
    "shopkeeper": ("shop", "market", "street"),
    "keeper": ("lighthouse", "park", "tower"),
    "blacksmith": ("workshop", "square", "stable", "mine"),
    "builder": ("yard", "street", "shed", "bridge", "mill", "porch"),
    "woodcutter": ("clearing", "oak tree", "pine forest", "hollow log", "slope"),
    "ranger": ("hill", "lake", "cave", "waterfall", "oak tree", "pine forest"),
    "ferryman": ("lake", "stream", "pond", "mountain lake", "pier"),
    "goatherd": ("pasture", "slope", "valley", "ravine", "hill"),
    "guide": ("mountain lake", "ravine", "ice cave", "mine", "cave", "cliff", "slope"),
    "cheesemaker": ("hut", "pasture", "village green", "barn"),
    "collector": ("rock pool", "beach", "dune", "attic", "berry patch", "ice cave"),
    "egg seller": ("henhouse", "market", "well"),
}

# Places by setting. noun: (preposition, features, two or three things one notices there)
# features: dark, water, tall (something high to be stuck on), soft (ground to dig in), cracks (narrow gaps), indoors
PLACES = {
    "farm": {
        "barn": (
            "in",
            "dark tall cracks indoors",
            "The hay smelled sweet|A hen clucked on a beam|Dust danced in the light",
        ),
        "field": ("in", "soft", "The corn rustled|A scarecrow waved its arms|The wheat was as high as a cow"),
        "orchard": (
            "in",
            "tall soft",
            "Bees hummed in the trees|Ripe fruit hung from the branches|Sweet fruit lay in the grass",
        ),
        "henhouse": (
            "in",
            "dark cracks indoors",
            "The hens were fast asleep|Feathers were everywhere|A rooster crowed",
        ),
        "pond": ("by", "water", "A frog jumped off a leaf|Green weeds grew all around|The water was still"),
        "mill": (
            "at",
            "tall cracks indoors",
            "The big wheel turned slowly|White flour covered the floor|The wooden wheel creaked",
        ),
        "stable": ("in", "dark cracks indoors", "A horse shook its mane|Straw covered the floor|It smelled of horses"),
        "well": (
            "by",
            "water cracks",
            "The bucket swung in the wind|Moss grew on the stones|The water was deep and cold",
        ),
        "vegetable garden": (
            "in",
            "soft",
            "Beans climbed up the poles|A fat pumpkin lay in the sun|Rows of cabbages stood in line",
        ),
    },
    "town": {
        "park": ("in", "tall soft", "Children ran across the grass|An old man fed the pigeons|The swings creaked"),
        "market": ("at", "", "People shouted the price of fish|Baskets were full of fruit|It smelled of fresh bread"),
        "library": (
            "in",
            "tall indoors cracks",
            "Everyone was very quiet|The shelves went up to the ceiling|Someone turned a page",
        ),
        "bakery": ("in", "indoors cracks", "The oven was hot|Warm bread lay on the shelf|The air smelled of cinnamon"),
        "school": ("at", "tall indoors", "A bell rang far away|Drawings hung on the walls|Chalk squeaked on the board"),
        "playground": (
            "at",
            "tall soft",
            "The slide shone in the sun|Two boys played in the sand|The seesaw went up and down",
        ),
        "square": ("in", "water", "The fountain splashed|A clock struck the hour|Pigeons walked about"),
        "street": ("in", "tall cracks", "A bicycle bell rang|Cars rolled by|Lamps stood in a long row"),
        "shop": (
            "in",
            "tall indoors cracks",
            "Jars stood in neat rows|A little bell rang above the door|The window was full of toys",
        ),
        "tower": (
            "in",
            "dark tall indoors",
            "The stairs went round and round|Bats slept under the roof|The wind whistled through the windows",
        ),
        "bridge": ("on", "water cracks", "Boats passed below|The river ran fast|The stones were old and gray"),
    },
    "sea": {
        "beach": ("on", "soft", "Waves rolled over the sand|Gulls cried above|Shells lay everywhere"),
        "harbor": ("in", "water", "Boats rocked up and down|Ropes lay in big rings|It smelled of salt and fish"),
        "lighthouse": (
            "in",
            "dark tall indoors",
            "The stairs were steep|The big lamp turned round|The wind howled outside",
        ),
        "sea cave": (
            "in",
            "dark cracks water",
            "Water dripped from the roof|Every word came back as an echo|Crabs hid under the stones",
        ),
        "pier": ("on", "water cracks", "Fish swam below the boards|A net was drying in the sun|The boards creaked"),
        "dune": ("on", "soft", "Tall grass waved in the wind|The sand was hot|The sand slid away with each step"),
        "rock pool": (
            "by",
            "water cracks",
            "A tiny crab ran sideways|Seaweed floated like hair|A starfish held on to a stone",
        ),
        "boathouse": (
            "in",
            "dark cracks indoors",
            "Oars leaned on the wall|An old boat lay upside down|It smelled of paint",
        ),
        "cliff": (
            "on",
            "tall cracks",
            "The wind was strong up there|The sea looked tiny below|White birds sailed past",
        ),
    },
    "woods": {
        "clearing": (
            "in",
            "soft tall",
            "Sunlight fell on the flowers|Butterflies played in the grass|A woodpecker knocked on a tree",
        ),
        "cave": ("in", "dark cracks", "Water dripped in the dark|It was cold inside|Every step made an echo"),
        "stream": ("by", "water", "The water sang over the stones|Little fish darted about|A dragonfly flew past"),
        "oak tree": (
            "by",
            "tall cracks",
            "Acorns dropped now and then|Its roots were thick as legs|Old leaves lay all around",
        ),
        "berry patch": (
            "in",
            "soft",
            "Thorns were everywhere|The bushes were heavy with fruit|A bee buzzed from bush to bush",
        ),
        "hollow log": ("by", "dark cracks", "Mushrooms grew on the bark|Ants marched in a line|It smelled of wet wood"),
        "hill": ("on", "soft tall", "One could see far and wide|The wind blew through the grass|Clouds sailed by"),
        "pine forest": ("in", "dark tall", "The trees stood close together|Needles covered the path|An owl called"),
        "lake": ("by", "water", "Ducks swam in a row|The water was like a mirror|Reeds swayed in the breeze"),
        "waterfall": ("by", "water cracks", "The water roared|Fine drops filled the air|A rainbow hung over the rocks"),
        "meadow": ("in", "soft", "Daisies grew everywhere|Crickets sang|The tall grass tickled"),
    },
    "home": {
        "kitchen": (
            "in",
            "tall indoors cracks",
            "A pot bubbled on the stove|The table was set for supper|It smelled of soup",
        ),
        "attic": (
            "in",
            "dark indoors cracks",
            "Old boxes stood in every corner|A spider sat in its web|Everything was covered in dust",
        ),
        "cellar": (
            "in",
            "dark indoors cracks",
            "It was cool and damp|Potatoes lay in a heap|Something dripped in the corner",
        ),
        "garden": ("in", "tall soft", "Roses grew along the fence|A snail crept up a leaf|Worms wriggled in the soil"),
        "bedroom": (
            "in",
            "tall indoors cracks",
            "The bed was neatly made|The curtains moved a little|Toys lay on the rug",
        ),
        "yard": ("in", "tall soft", "Washing hung on the line|A cat slept on the wall|Puddles shone on the ground"),
        "shed": (
            "in",
            "dark indoors cracks",
            "Old pots stood on the shelf|A rusty bicycle leaned on the wall|Cobwebs hung from the roof",
        ),
        "porch": (
            "on",
            "cracks",
            "A rocking chair moved in the wind|Boots stood by the door|A lamp hung over the door",
        ),
        "workshop": (
            "in",
            "indoors cracks tall",
            "Wood dust covered the floor|Tools hung on the wall|It smelled of glue",
        ),
    },
    "mountain": {
        "valley": ("in", "soft", "Cow bells rang|A path ran along the river|Snow shone on the peaks"),
        "hut": (
            "in",
            "dark indoors cracks",
            "A small stove kept it warm|Wood was stacked by the wall|Snow lay on the roof",
        ),
        "ice cave": ("in", "dark cracks", "Icicles hung like teeth|The walls shone blue|It was freezing"),
        "slope": (
            "on",
            "tall soft",
            "The stones rolled under every step|The air was thin and cold|An eagle circled above",
        ),
        "village green": (
            "on",
            "tall soft",
            "Old people sat on a bench|Children danced in a ring|Flags fluttered in the breeze",
        ),
        "mountain lake": (
            "by",
            "water",
            "The water was as clear as glass|The peaks stood upside down in the water|Ice lay along the shore",
        ),
        "ravine": ("in", "water cracks", "A stream rushed far below|Ferns grew between the rocks|The walls were steep"),
        "pasture": ("in", "soft", "Goats nibbled the grass|A shepherd whistled|Small blue flowers grew there"),
        "mine": ("in", "dark cracks", "The rails were rusty|It was black as ink|A cold wind came out of it"),
    },
}
PLACE_LOOKS = {
    "inside": "old quiet little big cozy cool dusty narrow crooked lonely".split(),
    "outside": "old quiet little big lovely sunny windy lonely busy peaceful wide green".split(),
}

# Things to love. noun: (what one does with it, adjectives that fit, what it is made of)
# (The tables of things all give: what one does with it, what it is made of.)
TOYS = {
    "kite": ("fly", "paper"),
    "ball": ("bounce", "rubber"),
    "drum": ("beat", "wood"),
    "top": ("spin", "wood"),
    "doll": ("hug", "cloth"),
    "teddy bear": ("hug", "cloth"),
    "whistle": ("blow", "tin"),
    "flute": ("play", "wood"),
    "scooter": ("ride", "tin"),
    "toy boat": ("sail", "wood"),
    "puppet": ("play with", "cloth"),
    "hoop": ("roll", "wood"),
    "marble": ("roll", "glass"),
    "paper plane": ("throw", "paper"),
    "toy train": ("play with", "tin"),
    "rattle": ("shake", "wood"),
    "harmonica": ("play", "tin"),
    "tricycle": ("ride", "tin"),
    "jump rope": ("jump with", "rope"),
    "music box": ("listen to", "wood"),
    "storybook": ("read", "paper"),
    "sled": ("ride", "wood"),
    "toy robot": ("play with", "tin"),
    "pinwheel": ("blow on", "paper"),
    "balloon": ("hold", "rubber"),
    "bubble pipe": ("blow", "wood"),
    "toy truck": ("push", "wood"),
    "rag rabbit": ("cuddle", "cloth"),
    "tambourine": ("shake", "wood"),
    "yo-yo": ("play with", "wood"),
    "wagon": ("pull", "wood"),
    "stick horse": ("ride", "wood"),
}
CLOTHES = {
    "hat": ("wear", "cloth"),
    "scarf": ("wear", "cloth"),
    "mittens": ("wear", "cloth"),
    "boots": ("wear", "leather"),
    "raincoat": ("wear", "cloth"),
    "cap": ("wear", "cloth"),
    "sweater": ("wear", "cloth"),
    "gloves": ("wear", "cloth"),
    "shoes": ("wear", "leather"),
    "vest": ("wear", "cloth"),
    "cape": ("wear", "cloth"),
    "socks": ("wear", "cloth"),
    "apron": ("wear", "cloth"),
    "slippers": ("wear", "cloth"),
}
TREASURES = {
    "ring": ("wear", "gold"),
    "necklace": ("wear", "gold"),
    "feather": ("look at", "light"),
    "shell": ("listen to", "shell"),
    "coin": ("look at", "gold"),
    "button": ("play with", "shell"),
    "bell": ("ring", "tin"),
    "mirror": ("look into", "glass"),
    "bracelet": ("wear", "gold"),
    "picture": ("look at", "paper"),
    "map": ("study", "paper"),
    "letter": ("read", "paper"),
    "pebble": ("hold", "stone"),
    "crown": ("wear", "gold"),
    "compass": ("follow", "gold"),
    "medal": ("wear", "gold"),
    "photo": ("look at", "paper"),
    "pearl": ("look at", "shell"),
    "brooch": ("wear", "gold"),
    "paintbrush": ("paint with", "wood"),
    "postcard": ("read", "paper"),
    "diary": ("write in", "paper"),
}
BREAKABLES = {
    "vase": ("", "glass"),
    "teapot": ("", "clay"),
    "cup": ("", "clay"),
    "clock": ("", "glass"),
    "plate": ("", "clay"),
    "bowl": ("", "clay"),
    "lamp": ("", "glass"),
    "jug": ("", "clay"),
    "picture frame": ("", "wood"),
    "flower pot": ("", "clay"),
    "chair": ("", "wood"),
    "birdhouse": ("", "wood"),
    "fence": ("", "wood"),
    "curtain": ("", "cloth"),
    "tablecloth": ("", "cloth"),
    "cushion": ("", "cloth"),
    "quilt": ("", "cloth"),
    "painting": ("", "paper"),
    "paper lantern": ("", "paper"),
    "sugar bowl": ("", "clay"),
}
# Too big to be thrown up into a tree or to slip into a crack.
BULKY = (
    "scooter",
    "sled",
    "wagon",
    "tricycle",
    "drum",
    "music box",
    "stick horse",
    "toy truck",
    "hoop",
    "boots",
    "raincoat",
    "sweater",
    "chest",
    "cape",
)
LIGHT = (
    "paper",
    "cloth",
    "rubber",
    "light",
)
PLURALS = {"mittens", "boots", "gloves", "shoes", "socks", "slippers", "scissors", "tongs", "pliers"}

COLORS = "red blue green yellow purple orange pink white black brown gray golden silver".split()
LOOKS = {
    "paper": "pretty big painted striped spotted bright",
    "rubber": "bouncy round shiny bright striped spotted",
    "wood": "wooden painted carved smooth old shiny",
    "cloth": "soft warm woolly striped checkered fluffy old cozy",
    "tin": "shiny rusty tin bright noisy old",
    "glass": "shiny tiny clear bright round pretty",
    "rope": "long new strong striped",
    "leather": "sturdy new old muddy fine shiny",
    "gold": "shiny tiny precious pretty golden old",
    "light": "soft long fluffy fine",
    "shell": "smooth pretty tiny shiny curly",
    "stone": "smooth round flat shiny spotted",
    "clay": "pretty old painted fine round",
    "tool": "old big good sturdy small new strong",
    "food": "sweet big fresh warm tasty soft round little",
}

# Tools. noun: (what it is good for, who lends such a thing)
TOOLS = {
    "ladder": ("reach", ""),
    "pole": ("reach", ""),
    "broom": ("reach", ""),
    "rake": ("reach", ""),
    "stool": ("reach", ""),
    "fishing rod": ("reach", ""),
    "net": ("scoop", ""),
    "bucket": ("scoop", ""),
    "raft": ("scoop", ""),
    "rowboat": ("scoop", ""),
    "ladle": ("scoop", ""),
    "spade": ("dig", ""),
    "shovel": ("dig", ""),
    "trowel": ("dig", ""),
    "hoe": ("dig", ""),
    "hook": ("pick", ""),
    "tongs": ("pick", ""),
    "wire": ("pick", ""),
    "pliers": ("pick", ""),
    "magnet": ("pick", ""),
    "rope": ("pull", ""),
    "cart": ("pull", ""),
    "chain": ("pull", ""),
    "wheelbarrow": ("pull", ""),
    "crowbar": ("pull", ""),
    "lantern": ("shine", ""),
    "candle": ("shine", ""),
    "flashlight": ("shine", ""),
    "torch": ("shine", ""),
    "glue": ("mend", ""),
    "tape": ("mend", ""),
    "paste": ("mend", ""),
    "hammer": ("mend", ""),
    "needle": ("mend", ""),
    "patch": ("mend", ""),
    "thread": ("mend", ""),
}
MASS = {
    "glue",
    "tape",
    "paste",
    "thread",
    "wire",
    "honey",
    "milk",
    "juice",
    "bread",
    "cheese",
    "rice",
    "soup",
    "corn",
    "lettuce",
    "clover",
    "flour",
    "butter",
    "sugar",
    "wood",
    "paint",
    "cloth",
    "string",
    "wool",
    "clay",
    "paper",
    "fish",
    "jam",
    "porridge",
    "tea",
}
MENDERS = {
    "paper": ("glue", "tape", "paste"),
    "wood": ("hammer", "glue"),
    "cloth": ("needle", "thread", "patch"),
    "glass": ("glue", "tape"),
    "clay": ("glue", "paste"),
    "tin": ("hammer",),
    "rubber": ("patch", "tape"),
    "leather": ("needle", "glue"),
    "rope": ("thread", "tape"),
}

FOODS = {
    "apple": ("eat", ""),
    "pear": ("eat", ""),
    "sandwich": ("eat", ""),
    "pie": ("eat", ""),
    "bun": ("eat", ""),
    "cake": ("eat", ""),
    "pancake": ("eat", ""),
    "cookie": ("eat", ""),
    "banana": ("eat", ""),
    "peach": ("eat", ""),
    "muffin": ("eat", ""),
    "rice ball": ("eat", ""),
    "dumpling": ("eat", ""),
    "carrot": ("eat", ""),
    "mango": ("eat", ""),
    "melon": ("eat", ""),
    "waffle": ("eat", ""),
    "corn cake": ("eat", ""),
    "plum": ("eat", ""),
    "orange": ("eat", ""),
    "biscuit": ("eat", ""),
    "tart": ("eat", ""),
    "flatbread": ("eat", ""),
    "sausage": ("eat", ""),
    "pretzel": ("eat", ""),
    "honey cake": ("eat", ""),
    "potato": ("eat", ""),
    "egg": ("eat", ""),
    "fig": ("eat", ""),
    "roll": ("eat", ""),
}

# Things that can be made: (what is needed, verb)
MAKEABLES = {
    "birthday cake": (("flour", "eggs", "butter", "sugar"), "bake"),
    "apple pie": (("apples", "flour", "butter"), "bake"),
    "vegetable soup": (("carrots", "potatoes", "beans", "onions"), "cook"),
    "fruit salad": (("grapes", "bananas", "peaches", "melons"), "make"),
    "birdhouse": (("wood", "nails", "paint"), "build"),
    "raft": (("logs", "ropes", "planks"), "build"),
    "tree house": (("planks", "nails", "ropes"), "build"),
    "scarecrow": (("straw", "old clothes", "sticks"), "make"),
    "snowman": (("snow", "a carrot", "two buttons"), "build"),
    "lantern": (("paper", "sticks", "glue"), "make"),
    "kite": (("paper", "string", "sticks"), "make"),
    "puppet": (("cloth", "buttons", "wool"), "sew"),
    "quilt": (("cloth", "thread", "wool"), "sew"),
    "campfire": (("sticks", "logs", "dry leaves"), "build"),
    "sandcastle": (("sand", "shells", "water"), "build"),
    "flower crown": (("daisies", "ribbons", "leaves"), "make"),
    "rice pudding": (("rice", "milk", "sugar"), "cook"),
    "bread": (("flour", "salt", "seeds"), "bake"),
    "mask": (("paper", "feathers", "paint"), "make"),
    "cart": (("wheels", "planks", "nails"), "build"),
}

# Character. trait: what people notice about it
TRAITS = {
    "shy": "hardly ever spoke to strangers|hid behind the door when guests came|blushed when people looked",
    "brave": "was not afraid of bugs or thunder|always went first|climbed the highest rocks",
    "curious": "asked questions all day long|looked into every box and drawer|wanted to know how everything worked",
    "careless": "left things lying everywhere|never looked twice|forgot where everything was",
    "kind": "always had a good word for everyone|liked to help|never passed anyone who was crying",
    "greedy": "always wanted the biggest piece|never had enough|did not like to share",
    "impatient": "could not wait for anything|wanted everything right now|never stood still",
    "patient": "never hurried|could wait for a long time|did one thing after another",
    "clever": "always had an idea|could solve any riddle|thought before acting",
    "stubborn": "never liked to change plans|did not listen to anyone|always said no first",
    "boastful": "bragged about everything|liked to show off|told everyone about being the best",
    "gentle": "spoke in a soft voice|never hurt even a fly|was good with small animals",
    "lazy": "liked to sleep until noon|never wanted to work|yawned all day",
    "cheerful": "sang from morning to night|smiled at everyone|laughed more than anyone",
    "proud": "did not like to ask for help|wanted to do everything alone|never said sorry",
    "timid": "was afraid of the dark|jumped at every noise|did not like to go out alone",
    "forgetful": (
        "forgot things all the time|could never remember what day it was|had to tie a string around one finger"
    ),
}

WEATHER = {
    "sunny": (
        "sun",
        "The sun was shining|The sky was blue|The air was warm",
        "The sun shone on everyone|The sun was going down",
    ),
    "windy": (
        "wind",
        "The wind blew hard|The wind shook the trees|Leaves flew through the air",
        "The wind was calm now|The wind sang softly",
    ),
    "rainy": (
        "rain",
        "Rain was falling|Rain tapped on the roofs|There were puddles everywhere",
        "The rain had stopped|A rainbow stood in the sky",
    ),
    "foggy": (
        "fog",
        "Fog lay over everything|One could hardly see a thing|The fog was as thick as milk",
        "The fog was gone|The fog had lifted at last",
    ),
    "snowy": (
        "snow",
        "Snow covered the ground|Snowflakes were falling|Everything was white",
        "Snow was falling softly|The snow shone in the moonlight",
    ),
    "cold": (
        "frost",
        "The air was icy|Frost covered the windows|It was cold outside",
        "The stars were bright and cold|It was getting colder",
    ),
    "hot": (
        "heat",
        "It was very hot|The sun burned down|Not a leaf moved in the heat",
        "It was cooler now|A cool breeze came up at last",
    ),
    "cloudy": (
        "clouds",
        "Gray clouds hung in the sky|Clouds covered the sun|The sky was gray",
        "The clouds were gone|The first stars came out",
    ),
}
EVENINGS = (
    "The sun was going down",
    "The first stars came out",
    "The moon came up over the roofs",
    "It was getting dark",
    "The lamps were lit",
    "The evening bell rang",
    "Supper was ready",
    "The birds had stopped singing",
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# Verbs whose past tense or -ing form does not follow the rule. base: (past, -ing)
IRREGULAR = {
    "fly": ("flew", "flying"),
    "beat": ("beat", "beating"),
    "spin": ("spun", "spinning"),
    "hug": ("hugged", "hugging"),
    "blow": ("blew", "blowing"),
    "ride": ("rode", "riding"),
    "throw": ("threw", "throwing"),
    "shake": ("shook", "shaking"),
    "read": ("read", "reading"),
    "hold": ("held", "holding"),
    "wear": ("wore", "wearing"),
    "ring": ("rang", "ringing"),
    "keep": ("kept", "keeping"),
    "show": ("showed", "showing"),
    "dig": ("dug", "digging"),
    "shine": ("shone", "shining"),
    "eat": ("ate", "eating"),
    "drink": ("drank", "drinking"),
    "swim": ("swam", "swimming"),
    "build": ("built", "building"),
    "bake": ("baked", "baking"),
    "make": ("made", "making"),
    "sew": ("sewed", "sewing"),
    "write": ("wrote", "writing"),
    "sing": ("sang", "singing"),
    "find": ("found", "finding"),
    "study": ("studied", "studying"),
    "save": ("saved", "saving"),
}

# Where the hero lives. * is replaced by a look, # by a color.
HOMES = {
    "farm": (
        "on a * farm|in a # farmhouse|in a village among the fields|on a * farm by the road|"
        "at the end of a country road"
    ),
    "town": (
        "in a * town|in a tall # house in the town|above a * shop|in a * street in the town|"
        "in a town with a # clock tower"
    ),
    "sea": "in a # house by the sea|in a fishing village|on a * island|on a # boat|close to the sea",
    "woods": (
        "at the edge of the woods|deep in the woods|in a hut in the woods|"
        "in a * hut under the trees|near a * pond in the forest"
    ),
    "home": (
        "in a * house with a garden|in a house with a # door|in a house with a # roof|"
        "in a * cottage|in a house on a hill"
    ),
    "mountain": (
        "high up in the mountains|in a * mountain village|at the foot of a * mountain|"
        "in a * hut in the mountains|on the side of a * mountain"
    ),
}
HOUSE_COLORS = "red blue green yellow white brown gray pink".split()
HOME_LOOKS = "small little quiet old big cozy lovely tiny".split()

FAMILY = {
    "she": ("Grandma", "Mother", "Mama", "Auntie"),
    "he": ("Grandpa", "Father", "Papa"),
}

# Things one can learn: (to do it, trying it, how a first try ends, who laughs at it, done at last)
SKILLS = {
    "whistle": ("whistling", "only air came out", "whistled a whole song"),
    "swim": ("swimming", "water went up the nose", "swam from one side to the other"),
    "skate": ("skating", "it ended with a bump on the ice", "skated in a big circle"),
    "juggle": ("juggling", "everything fell on the floor", "juggled with three balls"),
    "ride a bicycle": ("riding a bicycle", "the bicycle fell over", "rode all around the houses"),
    "tie a bow": ("tying a bow", "the knot came loose", "tied a perfect bow"),
    "draw a horse": ("drawing a horse", "it looked like a potato", "drew a horse that seemed to run"),
    "do a cartwheel": ("doing a cartwheel", "it ended with a thump", "did three cartwheels in a row"),
    "play the drum": ("playing the drum", "it sounded like falling pots", "played a real march"),
    "walk on stilts": ("walking on stilts", "the stilts went apart", "walked like a stork"),
    "row a boat": ("rowing a boat", "the boat only turned round and round", "rowed straight across"),
    "dance": ("dancing", "left foot stepped on right foot", "danced until the music stopped"),
    "sing high": ("singing high", "a croak came out", "sang as high as a bird"),
    "climb a rope": ("climbing a rope", "the way up ended after one step", "climbed to the very top"),
    "bake bread": ("baking bread", "the bread was as hard as a stone", "baked a soft, golden bread"),
    "catch a ball": ("catching a ball", "the ball rolled away", "caught every ball"),
    "skip stones": ("skipping stones", "the stone sank at once", "made a stone jump seven times"),
    "read": ("reading", "the letters danced about", "read a whole page aloud"),
    "knit": ("knitting", "the wool ended in a knot", "knitted a long scarf"),
    "spin a top": ("spinning a top", "the top fell over", "kept the top spinning for a minute"),
}

# What grows from a seed: (what one sees first, what one gets)
SEEDS = {
    "bean": ("a green sprout", "long green beans"),
    "sunflower": ("two tiny leaves", "a flower as tall as a door"),
    "pumpkin": ("a thick green leaf", "a pumpkin as big as a chair"),
    "tomato": ("a thin green stem", "round red tomatoes"),
    "rose": ("a small brown twig", "a pink rose"),
    "apple": ("a tiny tree", "a crisp apple"),
    "carrot": ("green feathers", "a long orange carrot"),
    "tulip": ("a green tip", "a yellow tulip"),
    "melon": ("a curly stem", "a heavy melon"),
    "pea": ("a little green hook", "fat green peas"),
    "strawberry": ("three round leaves", "sweet strawberries"),
    "poppy": ("a hairy leaf", "a bright red poppy"),
}

# Promises: what has to be done, what comes between, what happens, how it is put right
PROMISES = {
    "feed the hens": (
        "hens",
        "the hens were hungry and made a great noise",
        "gave the hens a double portion of corn",
    ),
    "close the gate": ("goats", "the goats were out and ate the cabbages", "led the goats back one by one"),
    "water the roses": ("roses", "the roses hung their heads", "carried water until it was dark"),
    "watch the soup": ("soup", "the soup boiled over and put out the fire", "scrubbed the stove and cooked new soup"),
    "bring in the washing": ("washing", "the rain had made all the washing wet", "hung up every shirt again"),
    "post the letter": ("letter", "the postman had already gone", "ran after the postman with the letter"),
    "walk the old dog": ("dog", "the old dog sat sadly by the door", "went on a long walk with the old dog"),
    "mind the lambs": ("lambs", "one lamb was missing", "looked behind every bush and found the lamb"),
    "tie up the boat": ("boat", "the boat had floated away", "waded into the water and pulled the boat back"),
    "shut the window": ("window", "rain had come in, and the rug was wet", "dried the rug with towels"),
    "keep the fire going": ("fire", "the stove was cold", "brought wood and lit the fire again"),
    "feed the rabbits": ("rabbits", "the rabbits were thumping for food", "picked the best clover for the rabbits"),
}

OCCASIONS = (
    "birthday",
    "wedding",
    "welcome party",
    "spring feast",
    "harvest feast",
    "school fair",
)

# Why somebody could use a present
PRESENT_REASONS = {
    "birthday": "it was {b.s} birthday",
    "ill": "{b} was ill in bed",
    "sad": "{b} had been sad for days",
    "moving": "{b} was going to move far away",
    "thanks": "{b} had always been so good to {a}",
}

# What one plays with indoors, though one should not.
INDOOR_BREAKERS = (
    "ball",
    "hoop",
    "scooter",
    "paper plane",
    "toy robot",
    "jump rope",
    "wagon",
    "tricycle",
    "toy truck",
    "balloon",
    "yo-yo",
)

# How the boaster loses a race.
PAUSES = (
    "lay down in the shade for a nap",
    "stopped to eat berries",
    "told some children about being so fast",
    "combed every hair at a puddle",
    "chased a butterfly",
    "sat down to watch the clouds",
    "showed off in front of the ducks",
    "took a long drink and a longer rest",
)

# What gives away somebody who hides.
GIVEAWAYS = (
    "sneezed",
    "giggled",
    "coughed",
    "sang softly",
    "had to yawn",
    "moved a foot",
    "stepped on a twig",
    "let a bit of sleeve show",
)

# What makes a noise at night.
NIGHT_NOISES = (
    "a branch at the window",
    "the wind in the chimney",
    "a mouse behind the wall",
    "the cat at the door",
    "a loose shutter",
    "a moth around the lamp",
    "rain in the gutter",
    "an owl on the roof",
    "the old clock on the stairs",
)

# Where things turn up in an untidy room.
SPOTS = (
    "under the bed",
    "behind the door",
    "in a boot",
    "under a pile of clothes",
    "behind the curtain",
    "on top of the cupboard",
    "under the pillow",
    "in the laundry basket",
    "between two books",
    "under the rug",
    "at the bottom of the toy box",
    "behind the chair",
)

# How food is lost.
SPILLS = (
    "fell into the mud",
    "fell into a puddle",
    "was full of ants",
    "rolled away and was gone",
    "was eaten by a cheeky crow",
    "was left on the table at home",
    "was carried off by a dog",
    "fell out of the bag on the way",
)

SHELTERS = {
    "umbrella": ("hold", "cloth"),
    "tent": ("share", "cloth"),
    "blanket": ("share", "cloth"),
    "tarp": ("share", "cloth"),
    "cardboard box": ("share", "paper"),
    "straw mat": ("share", "wood"),
    "sheet": ("share", "cloth"),
}
BOXES = {
    "box": ("", "wood"),
    "chest": ("", "wood"),
    "trunk": ("", "wood"),
    "case": ("", "leather"),
    "cupboard": ("", "wood"),
}

THINGS = {
    "toy": TOYS,
    "clothes": CLOTHES,
    "treasure": TREASURES,
    "tool": TOOLS,
    "food": FOODS,
    "breakable": BREAKABLES,
    "shelter": SHELTERS,
    "box": BOXES,
    "key": {"key": ("open", "tin")},
}
