"""What is said of each kind of event: one template a line (the language is explained in telling.py).

A key is a kind of event, or a kind and a note ("fail.high").
"""

PHRASES = {
    # Openings
    "weather": """
        It was [a|one] [bright|quiet|fine|long|busy] {n} near {p}.
        One {n}, [something happened|a story began] near {p}.
        [Early|Late] one {n}, [all was quiet|nobody was about] near {p}.
        It was {n.a} {n}.
    """,
    "sky": """
        {n}.
        {n}, and [there was a lot to do|nobody wanted to stay in bed|it was just the day for a walk].
        {n} [that day|that morning].
    """,
    "intro": """
        [Once upon a time|Once|Long ago|Not so long ago], there was {a.kind} named {a}. {a.he} lived near {p}.
        {a} was {a.kind} who lived [close to|not far from|near] {p}.
        [In a small house|In a little house|Right] near {p} lived {a.kind} named {a}.
        This is a story about {a}, {a.kind} who lived near {p}.
        Everyone [near|around] {p} knew {a}, the {a.trait} {a.species}.
        "Good morning, world!" said {a}. {a.he} was {a.kind} who lived near {p}.
        [There once was|There was once] {a.kind} called {a}. {a.his} home was near {p}.
        {a} lived near {p}. {a.he} was {a.kind}.
        Have you heard of {a}, the {a.trait} {a.species}? {a.he} lived near {p}.
        Of all the [children|little ones] who lived near {p}, none was as {a.trait} as {a} the {a.species}.
    """,
    "trait": """
        {A} {n}.
        {A} {n}, and everyone knew it.
        [People said|Everyone said|The neighbors said] that {a} {n}.
        {A} {n}[, every single day|, and that was that|, even on Sundays].
    """,
    "friends": """
        {b} the {b.trait} {b.species} was {a.his} best friend.
        {A.his} best friend was {b}, {b.kind}.
        {A} had a [good|dear|close] friend, {b.kind} called {b}.
        {A} did everything with {b}, {b.kind} from next door.
        {b}, {b.kind}, came to [play|visit] that day.
        [Every day|Most days], {a} played with {b}, {b.kind}.
    """,
    "treasure": """
        {A} had {t.a}. {a.he} loved to {t.use} {t.it}.
        {A} had {t.a} and loved {t.using} {t.it} more than anything.
        What {a} loved most {t.was} {t.a}[ from {a.his} grandmother| from {a.his} father| from a faraway town|].
        On {a.his} last birthday, {a} got {t.a}. {a.he} {t.used} {t.it} every day.
        {A} never went anywhere without {t.a}.
        {A} owned {t.a}. [Nothing else|No other thing] was so dear to {a.him}.
        "Look at my {t.noun}!" {a} liked to say. {t.they} {t.was} {t.your}.
    """,
    "play": """
        {A} {t.used} {t.the} [again and again|all morning|for a while|and laughed].
        {A} began to {t.use} {t.the}. It was [such fun|great fun|lovely].
        {A} {t.used} {t.the} [and did not look around|and sang a little song|and felt very happy].
    """,
    "lunch": """
        {a.his} [mother|father|grandfather|aunt] had packed {t.a} for lunch. {a} put {t.it} in a bag.
        {A} packed {t.a} for later.
        {A} took {t.a} along, in case {a.he} got hungry.
    """,

    # Going about
    "go": """
        {A} went {p.to}.
        {A} [walked|ran|hurried|skipped] {p.to}.
        [So|Then|After that,] {a} [went|set off|made {a.his} way] {p.to}.
        [Soon|Before long|A little later], {a} was {p.in}.
        {A} came {p.to}.
        The path led {a} {p.to}.
    """,
    "go.together": """
        {a} and {b} went {p.to}.
        {a} and {b} [walked|ran|hurried|raced] {p.to} [together|side by side|].
        [Soon|Before long], {a} and {b} were {p.in}.
        "Come with me!" {a} said, and {b} followed {a.him} {p.to}.
        [Then|So] the two friends, {a} and {b}, went {p.to}.
    """,
    "go.appear": """
        [Just then|At that moment], who came along? It was {a}!
        [Suddenly|All at once], {a} [was there|came by|stood there] again.
        Then {a} heard the noise and came to look.
    """,
    "return": """
        {A} [went|hurried|ran] back {p.to}.
        [Quickly|Happily|At once], {a} [went|walked] back {p.to}.
        With {a.his} heart beating fast, {a} returned {p.to}.
    """,
    "return.together": """
        {a} and {b} [went|hurried|ran] back {p.to}.
        Together, {a} and {b} [went|walked] back {p.to}.
    """,
    "notice": """
        {n}.
        {n}, but {a} [did not notice|had no time to look|walked on].
        {n}. {A} [smiled|looked around|liked that|listened].
        [There,|Here,] {n}.
    """,
    "later": """
        [Later that day|That afternoon|The next day|A week later|Some days later], {a} [wanted to play again|went out once more|was out again].
    """,

    # The dark
    "fear": """
        It was very dark there. {A} was afraid.
        {A} stopped. It was so dark {p.in} that {a.he} could not see {a.his} own feet.
        "It's so dark," {a} whispered. {a.his} knees shook.
        {A} did not like the dark. {a.his} heart went boom, boom, boom.
    """,
    "light": """
        Then {a} remembered {t.none}{u.the} in {a.his} bag. {a.he} lit {u.it}, and the dark was gone.
        Luckily, {a} had {u.a}. In the warm light, nothing looked scary any more.
        {A} took out {u.a} and held {u.it} up high. Now {a.he} could see everything.
    """,
    "comfort": """
        "Take my hand," said {a}. "I'm here." {b} held on tight.
        "I'm with you," {a} told {b}. "[We can do this together|Nothing can happen to us|Just hold on to me]."
        {a} took {b} by the hand and did not let go.
    """,
    "courage.song": """
        {A} began to sing a little song. With every line {a.he} felt a bit better.
        To be less afraid, {a} hummed the song that {a.his} mother sang at night.
    """,
    "courage.breath": """
        {A} took a deep breath and counted to ten.
        "I can do it," {a} said to {a.himself}, and took one small step, and then another.
    """,
    "brave": """
        Step by step, {a} went on. It was not so bad after all.
        "The dark is only the day asleep," {a} said, and went on.
        {A} was still a little afraid, but {a.he} went on.
    """,

    # Trouble
    "miss": """
        [Suddenly|Then|All at once], {a} stopped. {t.his.the} was gone! 
    """,
    "leave": """
        {A} put {t.the} down for a moment [to tie {a.his} shoe|to look at a butterfly|to pick a flower|to chase a bird] and forgot all about {t.it}.
        {A} [laid|put] {t.the} down {p.in} and walked off without {t.it}.
        {A} was in such a hurry that {a.he} left {t.the} lying {p.in}.
    """,
    "mishap.high": """
        [Suddenly|Whoosh]! A gust of wind took {t.the} and carried {t.it} up high, far out of reach.
        [Oh no!|Oops!] {t.the} flew up and got caught, high above {a.his} head.
    """,
    "mishap.water": """
        [Splash!|Plop!] {t.the} fell into the water.
        {a} slipped, and {t.the} fell into the deep water.
    """,
    "mishap.crack": """
        {t.the} slipped out of {a.his} hands and fell into a narrow crack.
        [Oh no!|Oops!] {t.the} dropped into a deep, narrow gap.
    """,
    "mishap.buried": """
        The ground was soft, and {t.the} sank deep into the mud.
        {a} tripped. {t.the} fell and was buried under a heap of earth.
    """,
    "mishap.heavy": """
        [Crash!|Bang!] A heavy log rolled over and lay right on top of {t.the}.
        A big stone rolled down and trapped {t.the}.
    """,
    "steal": """
        [Suddenly|Just then], {b} came, [grabbed|snatched] {t.the} and ran away.
    """,
    "feel.sad": """
        {A} was very sad because {why}.
        Tears came to {a.his} eyes, because {why}.
        {A} [felt like crying|wanted to cry]. {why}, and what now?
    """,
    "fail.high": """
        {A} jumped as high as {a.he} could, but {t.the} {t.was} too high.
        {A} stood on {a.his} toes and stretched, but could not reach {t.it}.
    """,
    "fail.water": """
        {A} stretched out {a.his} arm, but {t.the} {t.was} too far out.
        {A} tried to get {t.it} with a stick, but the stick was too short.
    """,
    "fail.crack": """
        {A} pushed {a.his} hand into the crack, but it was too narrow.
        {A} could see {t.it}, but {a.his} arm was too thick for the gap.
    """,
    "fail.buried": """
        {A} dug with bare hands, but the earth was too hard.
        {A} scratched at the ground until {a.his} hands hurt.
    """,
    "fail.heavy": """
        {A} pushed and pushed, but it did not move at all.
        {A} pulled with all {a.his} strength. It was much too heavy.
    """,
    "sigh": """
        "[What now|What can I do]?" {a} sighed.
        {A} sat down and thought hard.
    """,

    # Help
    "meet": """
        {A} met {b} there.
        Just then, {b} came by.
        There {A} saw {b}.
    """,
    "meet.elder": """
        {b} was [working|busy] there.
        There {a} met {b}.
    """,
    "ask_help": """
        "Can you help me, {b}?" {a} asked. "I can't get {t.my}."
        "Please help me get {t.my}," said {a}.
    """,
    "free.climb": "{A} climbed up, quick as a wink, and brought {t.the} down.",
    "free.fly": "{A} spread {a.his} wings, flew up and brought {t.the} down.",
    "free.swim": "{A} jumped into the water, swam out and brought back {t.the}.",
    "free.dig": "{A} dug and dug with strong paws, and out came {t.the}.",
    "free.squeeze": "{A} was small enough to squeeze through the gap and came out with {t.the}.",
    "free.push": "{A} was very strong and pushed the weight aside. {t.the} was free.",
    "free.reach": "With {u.the}, {a} could reach up high. {t.the} came down at last.",
    "free.scoop": "With {u.the}, {a} got {t.the} out of the water.",
    "free.pick": "{A} put {u.the} into the crack and pulled out {t.the}.",
    "free.pull": "{A} used {u.the} to move the weight. {t.the} was free!",
    "take": """
        {A} [took|picked up] {t.the}.
    """,
    "thank": """
        "Thank you, {b}!" said {a}.
    """,
    "idea": """
        "I need {u.a}," {a} [said|thought].
        "{u.a} would help," said {a}.
    """,
    "give.fetch": """
        {A} ran home and came back with {t.the}. "Here, {b}!"
    """,
    "recall_tool": """
        {A} remembered that there was {t.a} {p.in}.
    """,
    "ask_for": """
        "May I borrow {t.your}, please?" asked {a}.
    """,
    "condition": """
        "Yes," said {a}, "but first help me a little."
    """,
    "chore": """
        {A} helped {b} with all the work.
    """,
    "lend": """
        {A} gave {b} {t.the}. "Bring {t.it} back when you are done."
    """,
    "see.decoy": """
        {A} saw {t.a} there, but that was not what {a.he} was looking for.
    """,
    "search": """
        {A} looked everywhere, but {t.the} was not there.
    """,
    "hesitate": """
        {A} did not dare to ask at first. Then {a.he} took heart.
    """,
    "ask": """
        "Have you seen {t.my}?" {a} asked.
    """,
    "tell": """
        "Yes," said {a}. "{t.your} {t.is} {p.in}."
    """,
    "remember": """
        Then {a} remembered: {t.the} must be {p.in}!
    """,
    "find": """
        There, {p.in}, {a} found {t.the}.
    """,
    "recover": """
        {A} was so happy to have {t.the} back.
    """,
    "need.hungry": """
        There sat {a}, who looked thin and hungry.
    """,
    "beg": """
        "I'm so hungry," said {a}. "Can I have a bit of {t.your}?"
    """,
    "refuse": """
        "No!" said {a}. "{t.the} {t.is} mine."
    """,
    "guilt.refuse": """
        But then {a} saw {B.his} sad eyes and felt sorry.
    """,
    "share_food": """
        {A} broke {t.the} in two and gave half to {b}.
    """,
    "thanks_food": """
        "Thank you," said {a}. "I will not forget it."
    """,
    "offer": """
        "You gave me {t.the} when I was hungry," said {a}. "Now I will help you."
    """,
    "evening": "{n}.",
    "feel.glad": "{A} was happy because {why}.",
    "keepsake": "From that day on, {a} took good care of {t.the}.",
    "moral": "And {a} learned something that day.",
}
CAUSES = {
    "mishap": "{t.the} {t.was} gone",
    "recover": "{t.the} {t.was} back",
    "thank": "{b} had helped",
}
