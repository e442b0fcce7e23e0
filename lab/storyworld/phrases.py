# ruff: noqa: E501 (one wording a line, however long)
"""What is said of each kind of event: one template a line (the language is explained in telling.py).

A key is a kind of event, or a kind and a note: "fail.high" tells that somebody failed to reach something high up.
"""

PHRASES = {
    # Openings
    "sky": """
        {n}.
        {n}, and [there was a lot to do|nobody wanted to stay in bed|it was just the day for a walk|the birds knew it too].
        It was {day}. {n}.
        {day} had come, and {n.low}.
        One {day} morning, {n.low}.
    """,
    "intro": """
        [Once upon a time|Once|Long ago|Not so long ago], there was {a.kind} named {a} who lived {home}.
        {a} was {a.kind} who lived {home}.
        {home} lived {a.kind} named {a}.
        This is the story of {a}, {a.kind} who lived {home}.
        Everyone knew {a}, the {a.trait} {a.species} who lived {home}.
        "Good morning, [world|sun|little birds]!" said {a}. {a.he} was {a.kind} who lived {home}.
        [There once was|There was once] {a.kind} called {a}. {a.his} home was {home}.
        {a} lived {home}. {a.he} was {a.kind}.
        Have you heard of {a}, the {a.trait} {a.species}? {a.he} lived {home}.
        {home}, {a} the {a.species} [woke up early|jumped out of bed|ate breakfast in a hurry|looked out of the window]. {a.he} was {a.kind}.
        Let me tell you about {a}, {a.kind}. {a.he} lived {home}.
        Do you know {a}? {a.he} was {a.kind} and lived {home}.
        "[What shall I do today?|What a lovely day!|Is it time to get up?]" said {a}, {a.kind} who lived {home}.
    """,
    "trait": """
        {A} {n}.
        {A} {n}, and everyone knew it.
        [People said|Everyone said|The neighbors said|It was true] that {a} {n}.
        {A} {n}[, every single day|, and that was that|, even on Sundays].
        [It must be said|You should know] that {a} {n}.
    """,
    "friends": """
        {b.name} the {b.trait} {b.species} was {a.his} best friend.
        {A.his} best friend was {b.name}, {b.kind}.
        {A} had a [good|dear|close] friend, {b.kind} called {b.name}.
        {A} did everything together with {b.name}, {b.kind}.
        {b.name}, {b.kind}, came to [play|visit|say hello] that day.
        [Every day|Most days|As often as they could], {a} and {b.kind} named {b.name} played together.
        "[Hello|Good morning|Wake up], {a}!" called {b.name}, who was {b.kind} and {a.his} best friend.
    """,
    "treasure": """
        {A} had {t.a} and loved to {t.use} {t.it}.
        {A} had {t.a}. {a} loved {t.using} {t.it} more than anything.
        What {a} loved most was {t.a} from {a.his} [grandmother|father|aunt|big brother|cousin].
        On {a.his} last birthday, {a} got {t.a}. {a.he} {t.used} {t.it} every day.
        {A} never went anywhere without {t.a}.
        {A} owned {t.a}. [Nothing else|No other thing] was so dear to {a.him}.
        That morning, {a} took {t.a} along. {a.he} loved {t.using} {t.it}.
        {A} was very proud of {t.a}, a gift from {a.his} [grandfather|mother|uncle|godmother].
    """,
    "play": """
        {A} {t.used} {t.the} [again and again|all morning|for a while|and laughed].
        {A} began to {t.use} {t.the}. It was [such fun|great fun|lovely].
        {A} {t.used} {t.the} [and did not look around|and sang a little song|and felt very happy].
        "Watch me!" cried {a}, and {a.he} {t.used} {t.the}.
    """,
    "lunch": """
        {A.his} [mother|father|grandfather|aunt] had packed {t.a} for lunch. {a} put {t.it} in a bag.
        {A} packed {t.a} for later.
        {A} took {t.a} along, in case {a.he} got hungry.
        In {a.his} bag, {a} had {t.a} for lunch. It smelled good.
    """,
    # Going about
    "go": """
        {A} went {p.to}.
        {A} [walked|ran|hurried|skipped|strolled] {p.to}.
        [So|Then|After that,] {a} [went|set off|walked all the way] {p.to}.
        [Soon|Before long|A little later], {a} was {p.in}.
        {A} came {p.to}.
        The path led {a} {p.to}.
        It was not far {p.to}, and {a} knew the way.
    """,
    "go.together": """
        {a} and {b} went {p.to}.
        {a} and {b} [walked|ran|hurried|raced] {p.to} [together|side by side|hand in hand].
        [Soon|Before long], {a} and {b} were {p.in}.
        "Come with me!" {a} said, and {b} came along {p.to}.
        [Then|So] the two friends, {a} and {b}, went {p.to}.
        "[I'll race you|Let's go]!" said {b}, and {a} and {b} [ran|hurried] {p.to}.
    """,
    "appear": """
        [Just then|At that moment], who came along? It was {a}!
        [Suddenly|All at once], {a} was there again.
        {a} heard the noise and came to look.
        "[Hello|What is wrong|Why so sad]?" said a voice. It was {a}!
    """,
    "return": """
        {A} [went|hurried|ran] back {p.to}.
        [Quickly|At once|Without a stop], {a} [went|walked] back {p.to}.
        {A} returned {p.to}.
        Then {a} went all the way back {p.to}.
        [Before long|A little later], {a} was back {p.in}.
    """,
    "return.together": """
        {a} and {b} [went|hurried|ran] back {p.to}.
        Together, {a} and {b} [went|walked] back {p.to}.
        Then {a} and {b} went all the way back {p.to}.
    """,
    "notice": """
        {n}.
        {n}, but {a} [did not notice|had no time to look|walked on].
        {n}. {A} [looked around|stood still|listened for a while].
        It was [always nice|good to be|quiet] there. {n}.
    """,
    "chat": """
        "[What is your favorite color|Can you whistle|Do you know a riddle]?" {b} asked {a} on the way.
        "I hope we find [something|an adventure|some fun] today," said {b}. {a} nodded.
        {b} told {a} a joke, and {a} laughed out loud.
        {a} and {b} [sang a song|counted birds|told each other stories] on the way.
    """,
    "later": """
        [Later that day|That afternoon|The next day|A week later|Some days later], {a} [went out once more|was out again].
        [A few days went by|A whole week went by|Three days went by]. Then {a} [went out once more|was out again].
    """,
    # The dark
    "fear": """
        It was very dark there. {A} was afraid.
        {A} stopped. It was so dark that {a} could not see {a.his} own feet.
        "It's so dark," {a} whispered. {a.his} knees shook.
        {A} did not like the dark. {a.his} heart went boom, boom, boom.
        What was that noise in the dark? {A} wanted to run away.
    """,
    "light": """
        Luckily, {a} had {u.a} in {a.his} pocket. In the warm light, nothing looked scary any more.
        {A} took out {u.a} and held {u.it} up high. Now {a.he} could see everything.
        But {a} had brought {u.a}. {a.he} lit {u.it}, and the shadows ran away.
    """,
    "comfort": """
        "Take my hand," said {a}. "I'm here." {b} held on tight.
        "I'm with you," {a} told {b}. "[We can do this together|Nothing can happen to us|Just hold on to me]."
        {a} took {b} by the hand and did not let go.
        "[There is nothing there|It is only the wind]," said {a}, and {b} felt a little better.
    """,
    "courage.song": """
        {A} began to sing a little song. With every line, {a} felt a bit better.
        To be less afraid, {a} hummed the song that {a.his} mother sang at night.
        {A} whistled a tune, first softly, then louder and louder.
    """,
    "courage.breath": """
        {A} took a deep breath and counted to ten.
        "I can do it," {a} said to {a.himself}, and took one small step, and then another.
        {A} closed {a.his} eyes, thought of home and walked on.
    """,
    "brave": """
        Step by step, {a} went on. It was not so bad after all.
        "The dark is only the day asleep," {a} said, and went on.
        {A} was still a little afraid, but went on [all the same|bravely].
    """,
    # Trouble
    "leave": """
        {A} put {t} down for a moment [to tie {a.his} shoe|to look at a butterfly|to pick a flower|to watch a bird] and forgot all about {t.it}.
        {A} [laid|put] {t} down {p.in} and walked off without {t.it}.
        {A} was in such a hurry that {a.he} left {t} lying {p.in}.
        {A} played and played, and when it was time to go, {t} stayed behind {p.in}.
    """,
    "miss": """
        [Suddenly|Then|All at once], {a} stopped. Where {t.was} {t.the}? {t.they} {t.was} gone!
        {A} [felt in {a.his} pockets|looked in {a.his} bag|looked around]. "[Oh no|Oh dear]! {t.my} {t.is} gone!"
        "Where {t.is} {t.my}?" cried {a}. {a.he} looked left and right, but {t.the} {t.was} nowhere to be seen.
        {A} wanted to {t.use} {t}, but {t.they} {t.was} not there any more.
    """,
    "blow_away": """
        [Suddenly|Whoosh]! A gust of wind took {t} and carried {t.it} up high, far out of reach.
        The wind blew hard. {t} flew up and got caught, high above {a.his} head.
        But then the wind pulled {t} out of {a.his} hands, and {t.they} got stuck high up above.
    """,
    "mishap.high": """
        {A} threw {t} up into the air to catch {t.it} again. But {t.they} got stuck, high above {a.his} head.
        "See how high I can throw {t.it}!" cried {a}. But {t.the} did not come down again.
        {A} put {t} on a branch for a moment. A bird took {t.it} and dropped {t.it} much higher up.
    """,
    "mishap.water": """
        [Splash!|Plop!] {t} fell into the water.
        {a} slipped, and {t} fell into the deep water.
        But {a} came too close to the edge. {t} dropped into the water and floated away from {a.him}.
    """,
    "mishap.crack": """
        {t} slipped out of {a.his} hands and fell into a narrow crack.
        [Oh no!|Oops!] {t} dropped into a deep, narrow gap.
        But {a} was not careful, and {t} slid down between two [stones|boards].
    """,
    "mishap.buried": """
        The ground was soft, and {t} sank deep into the mud.
        {a} tripped. {t} fell, and a heap of earth slid down on {t.it}.
        A pile of earth came down, and {t} {t.was} buried under it.
    """,
    "mishap.heavy": """
        [Crash!|Bang!] A heavy log rolled over and lay right on top of {t}.
        A big stone rolled down and trapped {t}.
        A stack of heavy boxes fell over, and {t} {t.was} under it.
    """,
    "steal": """
        [Suddenly|Just then], {b} came, [grabbed|snatched] {t} and ran away [as fast as the wind|before anyone could shout].
        Nobody saw {b} come. In a flash, {t} {t.was} gone, and so was the thief.
        But {b} liked {t} too, took {t.it} and was gone.
    """,
    # The lines of feel.sad and feel.glad go in pairs: the same words but for the feeling.
    "feel.sad": """
        {A} was [very|so] sad because {why}.
        {A} felt [terrible|unhappy|awful], because {why}.
        {A} cried because {why}.
        "What a bad day," said {a}, who was sad because {why}.
        {A} had a heavy heart, because {why}.
    """,
    "feel.glad": """
        {A} was [very|so] happy because {why}.
        {A} felt [wonderful|glad|warm inside], because {why}.
        {A} smiled because {why}.
        "What a good day," said {a}, who was happy because {why}.
        {A} had a light heart, because {why}.
    """,
    "cheer_up": """
        "Don't cry," said {a}. "[We will think of something|Two heads are better than one|I will help you]."
        {a} put an arm around {b}. "[It will be all right|We'll find a way]."
        "[Cheer up|Don't be sad], {b}," said {a}. "There must be a way."
    """,
    "alone": """
        "I don't need any help," said {a}. "[I can do it alone|I never need help]."
        "Shall I get somebody?" a passing [boy|girl|bird] asked. "No," said {a}, "I can do it alone."
    """,
    "fail.high": """
        {A} jumped as high as {a.he} could, but {t.the} {t.was} too high.
        {A} stood on {a.his} toes and stretched, but could not reach {t.it}.
        {A} threw a [pebble|pine cone|shoe] at {t.it}, but that did not help.
        {A} tried to climb up, but slid down again. {t.the} {t.was} still up there.
        {A} hopped and hopped. {t} did not come down.
    """,
    "fail.water": """
        {A} stretched out {a.his} arm, but {t} {t.was} too far out.
        {A} tried to get {t.it} with a twig, but the twig was too short.
        {A} leaned over and almost fell in. {t} drifted even farther away.
        {A} threw stones to make waves, but {t} only bobbed up and down.
    """,
    "fail.crack": """
        {A} pushed {a.his} hand into the crack, but it was too narrow.
        {A} could see {t}, but the gap was too small for {a.his} arm.
        {A} poked with a twig, and {t} only slid in deeper.
        {A} knocked and shook, but {t} stayed where {t.they} {t.was}.
    """,
    "fail.buried": """
        {A} dug with bare hands, but the earth was too hard.
        {A} scratched at the ground until {a.his} hands hurt.
        {A} pushed the earth aside, but more and more of it slid down.
    """,
    "fail.heavy": """
        {A} pushed and pushed, but nothing moved at all.
        {A} pulled with all {a.his} strength. It was much too heavy.
        {A} kicked it, and that only hurt {a.his} toes.
        {A} leaned against it until {a.his} face was red. {t.the} did not come free.
    """,
    "sigh": """
        "[What now|What can I do]?" {a} sighed.
        {A} sat down and thought hard.
        {A} scratched {a.his} head and thought.
        "[Think, think|There must be a way]," {a} said to {a.himself}.
    """,
    # Help
    "meet.elder": """
        {b} was [working|busy|sitting on a chair|having tea] there.
        There {a} met {b}.
        {b} looked up and [smiled|waved|nodded]. "[Good day|Hello|Welcome], {a}. What brings you here?"
        {A} saw {b}, who was always [kind|friendly|a bit grumpy|in a good mood].
        "[Come in|Hello there|Good day]!" called {b}.
    """,
    "meet.stranger": """
        There {a} met {b}.
        {A} was not alone there. {b} [sat in the grass|was having a rest|sat in the sun|was eating breakfast].
        {b} looked at {a} with big eyes. "[Hello|Good day]. Who are you?"
        {A} saw {b} [nearby|in the shade|on a stone].
    """,
    "meet.helper": """
        Just then, {b} came by.
        [Then|Luckily], {a} saw {b} close by.
        "[What is the matter|Why are you so sad|Is something wrong]?" asked {b}, who had seen it all.
        {b} had been watching and came closer.
    """,
    "hesitate.shy": """
        {A} looked at {a.his} feet and did not dare to speak. Then {a.he} took heart.
        {A} blushed. It took a while, but at last {a.he} spoke.
    """,
    "hesitate.timid": """
        {A} wanted to run away, but that would not help. So {a.he} spoke up.
        {A} hid behind a post for a while. Then {a.he} took one step, and another.
    """,
    "hesitate.proud": """
        {A} did not like to ask for anything. But this time {a.he} did.
        It was hard for {a} to ask. But there was no other way.
    """,
    "ask_help": """
        "Can you help me, {b}?" {a} asked. "I can't get {t.my}."
        "Please help me get {t.my}," said {a}.
        "{t.my} {t.is} stuck," said {a}. "Could you help me, please?"
    """,
    "free.climb": """
        {A} climbed up, quick as a wink, and brought {t} down.
        {A} was a good climber. Up and up {a.he} went, and down came {t}.
    """,
    "free.fly": """
        {A} spread {a.his} wings, flew up and brought {t} down.
        {A} flapped {a.his} wings and flew up high. A moment later, {t} {t.was} back on the ground.
    """,
    "free.swim": """
        {A} jumped into the water, swam out and brought back {t}.
        For {a}, swimming was easy. {a.he} swam out to {t} and pushed {t.it} back to land.
    """,
    "free.dig": """
        {A} dug and dug with strong paws, and out came {t}.
        Nobody could dig like {a}. Earth flew everywhere, and there {t.was} {t}!
    """,
    "free.squeeze": """
        {A} was small enough to squeeze into the gap and came out with {t}.
        {A} made {a.himself} thin, slipped in and pulled out {t}.
    """,
    "free.push": """
        {A} was very strong and pushed the weight aside. {t} {t.was} free!
        {A} put {a.his} head down and pushed. The weight rolled away, and there {t.was} {t}.
    """,
    "free.reach": """
        With {u}, {a} could reach up high, and {t} came down at last.
        {A} used {u} to reach {t} and [carefully|slowly] got {t.it} down.
        {A} [put|held] {u.the} in the right place and reached up. Down came {t}!
    """,
    "free.scoop": """
        With {u}, {a} got {t} out of the water.
        {A} used {u} to get {t} out of the water, dripping wet.
        {A} took {u} and [slowly|carefully] brought {t} back to the shore.
    """,
    "free.pick": """
        {A} put {u} into the crack and pulled out {t}.
        With {u}, {a} got hold of {t} and pulled {t.it} out.
        {A} used {u} to reach into the gap. Bit by bit, {t} came out.
    """,
    "free.dig_out": """
        {A} dug with {u}. Soon {t} {t.was} out of the ground.
        With {u}, {a} dug away the earth until {t} came out.
        {A} used {u} to dig. One, two, three, and there {t.was} {t}!
    """,
    "free.pull": """
        With {u}, {a} moved the weight. {t} {t.was} free!
        {A} used {u} to move the weight, little by little, until {t} {t.was} free.
    """,
    "free.open": """
        {A} put {u} into the lock. Click! {t} {t.was} open.
        With {u}, {a} opened {t}. It went click, clack.
    """,
    "take": """
        {A} [took|picked up|reached for] {t}.
        {A} took {t} [with both hands|and looked at {t.it}|and held {t.it} tight].
        [Quickly|Carefully|Gladly], {a} picked up {t}.
    """,
    "thank": """
        "Thank you, {b}!" said {a}[.|. "I could not have done it without you."|. "You got {t.my} back!"]
        {A} [hugged|thanked] {b}. "[You are so kind|You saved {t.my}|What would I do without you]!"
        "Thank you so much for helping me with {t.my}, {b}," said {a}.
        "[You did it|Hurray], {b}!" cried {a}. {b} [smiled|was proud|bowed].
    """,
    "idea": """
        "I need {u.a}," {a} [said|thought].
        Then {a} had an idea. "{u.a} would help!"
        "With {u.a}, I could do it," {a} [said|thought|said aloud].
        {A} thought of {u.a}. That would be just the right thing.
    """,
    "idea.friend": """
        "We have {u.a} at home," {a} told {b}.
        "Wait!" said {a}. "I have {u.a}. That will help, {b}!"
        {a} had an idea. "What about {u.a}, {b}?"
    """,
    "fetch": """
        {A} ran home and came back with {t}. "Here you are, {b}!"
        {A} was gone for a while and came back, out of breath, with {t} for {b}.
    """,
    "recall_tool": """
        Then {a} remembered that {t.a} lay {p.in}.
        Had {a} not seen {t.a} {p.in}? Yes, {a.he} had!
        There was {t.a} {p.in}, {a} remembered.
    """,
    "ask_for": """
        "May I borrow {t.your}, please?" asked {a}.
        "I need {t.your}, please," said {a}. "Just for a little while."
        {A} told {b} everything and asked for {t}.
        "Excuse me, {b}," said {a}. "Could you lend me {t.your}?"
    """,
    "condition.sweep": """
        "Gladly," said {a}, "but [first|before that] I need somebody to sweep the floor."
        "You can have {t.it}," said {a}, "when the floor is swept."
    """,
    "condition.carry": """
        "First help me carry these [sacks|boxes|baskets]," said {a}. "Then you can have {t.it}."
        "My back hurts," said {a}. "Will you carry these [sacks|boxes|baskets] for me first?"
    """,
    "condition.water": """
        "Water my flowers first," said {a}. "Then {t.the} {t.is} yours for the day."
        "I will, if you water my flowers," said {a}.
    """,
    "condition.find": """
        "First help me find my glasses," said {a}. "I can't see a thing."
        "Where are my glasses?" said {a}. "Find them, and you can have {t.it}."
    """,
    "condition.wash": """
        "There are many dishes to wash," said {a}. "Help me first, please."
        "You may," said {a}, "as soon as these dishes are clean."
    """,
    "chore.sweep": """
        {A} swept the floor until it shone.
        {A} took a brush and swept every corner for {b}.
    """,
    "chore.carry": """
        {A} carried one after the other until all the work was done.
        {A} carried everything inside for {b}, and it took a long time.
    """,
    "chore.water": """
        {A} watered all the flowers, the red ones and the yellow ones.
        {A} filled the can three times, and no flower stayed thirsty.
    """,
    "chore.find": """
        {A} looked high and low. The glasses were on {b.s} nose the whole time! They both laughed.
        {A} found the glasses under a newspaper and gave them to {b}.
    """,
    "chore.wash": """
        {A} washed every dish, and {b} dried them.
        {A} washed the dishes and did not break a single one.
    """,
    "lend": """
        {a} gave {b} {t}. "Bring {t.it} back when you are done."
        "[Of course|Here you are|Take {t.it}]," said {a}, and gave {b} {t}.
        "[Good luck|Be careful with {t.it}], {b}," said {a} and handed over {t}.
        {a} nodded and lent {b} {t}.
    """,
    "give_back": """
        [Later|Before supper], {a} brought {t} back to {b} and said thank you.
        {A} did not forget to bring {t} back to {b}.
    """,
    "beside": """
        Next to it lay {t.a}.
        {t.a} lay there, too.
        There was also {t.a}, but that was of no use.
    """,
    # Searching
    "see.decoy": """
        {A} saw {t.a} there, but that was not what {a.he} was looking for.
        Something lay there! But it was only {t.a}.
        There {a} found {t.a}, which belonged to somebody else.
    """,
    "search": """
        {A} looked everywhere, but {t.the} {t.was} not there.
        {A} looked under every [stone|bench|bush|leaf]. No {t.noun}!
        {A} searched high and low for {t.the}, but found nothing.
        "No, {t.the} {t.is} not here," said {a}.
    """,
    "ask": """
        "Have you seen {t.my}?" {a} asked.
        "I have lost {t.my}," said {a}. "Did you see {t.it}?"
        "Please, {b}, do you know where {t.my} {t.is}?" asked {a}.
        {A} told {b} about {t.the}.
    """,
    "ask.key": """
        "I am looking for a key," {a} said. "Have you seen one, {b}?"
        "There is a box that I can't open," {a} told {b}. "Do you know where the key is?"
        "Please, {b}, have you seen a key somewhere?" asked {a}.
    """,
    "tell.key": """
        "Yes," said {a}. "There is {t.one} {p.in}."
        "I saw {t.one} {p.in}," said {a}.
        "Go {p.to}," said {a}. "There is {t.one} there."
    """,
    "tell": """
        "Yes," said {a}. "{t.your} {t.is} {p.in}."
        "I saw {t.it} {p.in}," said {a}.
        "Go {p.to}," said {a}. "I saw {t.your} there."
        {A} thought for a moment. "I think I saw {t.it} {p.in}."
        "[Don't worry|Dry your tears], {b}," said {a}. "{t.your} {t.is} {p.in}."
    """,
    "remember": """
        Then {a} remembered: {t.the} must be {p.in}!
        {A} closed {a.his} eyes and thought. "Now I know! {t.my} {t.is} {p.in}!"
        {A} went through the whole day in {a.his} mind. Of course! {t.the} {t.was} {p.in}!
    """,
    "follow": """
        {A} saw small footprints that led {p.to}. "{t.my} must be there!"
        A trail of [feathers|crumbs|little prints] led {p.to}. {A} followed it.
    """,
    "find": """
        And there, {p.in}, {a} found {t.the}.
        There {t.was} {t.the}, {p.in}, just where {t.they} had to be.
        "There!" cried {a}. {t.the} {t.was} {p.in}, [safe and sound|all alone].
    """,
    "recover": """
        {A} [was so happy|laughed with joy|danced around] to have {t.the} back.
        At last {a} held {t} again and would not let go of {t.it}.
        "I have {t.my} back!" cried {a}[.| and jumped for joy.]
        {A} hugged {t}. "I missed you!" {a.he} said.
        {A} wiped {t} clean. {t.they} {t.was} as good as new.
    """,
    "return_thing": """
        "I only wanted to play with {t.it}," said {a}. "I'm sorry."
        {a} looked at the ground. "I'm sorry, {b}. I only wanted to look at {t.it}."
    """,
    "find_stuck": """
        There {t.was} {t.the}! But {t.they} {t.was} {n}.
        {A} saw {t.the} at last, but {t.they} {t.was} {n}.
        "I can see {t.it}!" cried {a}. But {t.the} {t.was} {n}.
    """,
    "fail.locked": """
        {A} pulled at the lid, but {t} {t.was} locked.
        {A} shook {t} and knocked on {t.it}. It did not open. There was a lock with no key.
        {A} tried to open {t} with {a.his} nails. It was no use without a key.
    """,
    "forgive": """
        {a} thought about it. Then {a.he} smiled at {b}. "Next time, just ask."
        "[That's all right|I'm not angry any more]," said {a}. "Next time, ask me, {b}, and we can play together."
        "I forgive you, {b}," said {a}. "We can both use it."
    """,
    # Sharing food
    "need.hungry": """
        There sat {a}, who looked thin and hungry.
        {a} sat there all alone and rubbed an empty tummy.
        There {h} met {a}, who looked sad and tired.
    """,
    "beg": """
        "I'm so hungry," said {a}. "Can I have a bit of {t.your}?"
        "I have not eaten since yesterday," {a} told {b}, looking at {t}.
        "{t.your} smell{t.s} so good," said {a}. "I have had nothing to eat all day."
    """,
    "refuse": """
        "No!" said {a}. "{t.the} {t.is} mine." {b} looked down sadly.
        "I'm hungry too," said {a}, and held {t} tight.
        {A} turned away. "Go and find your own food."
    """,
    "guilt.refuse": """
        But then {a} saw {b.s} sad eyes and felt sorry.
        {A} wanted to eat, but the food did not taste good while {b} was hungry.
        After a few steps, {a} stopped. It did not feel right to leave {b} hungry.
    """,
    "share_food": """
        {A} broke {t} in two and gave half to {b}. They ate together.
        "[Here|Come], {b}, let us share," said {a}, and they ate {t} together.
        {A} sat down next to {b}, and they shared {t}.
    """,
    "thanks_food": """
        "Thank you, {b}," said {a}. "I will not forget it."
        "[How kind you are|You are a good friend], {b}," said {a}. "One day I will help you too."
        {a} felt strong again. "Call me when you need me, {b}!"
    """,
    "offer": """
        "You shared {t.your} with me," said {a}. "Now I will help you."
        "I have not forgotten {t.the}, {b}," said {a}. "Let me help you."
        "When I was hungry, you gave me food," said {a}. "Let me do something for you, {b}."
    """,
    # Broken things and the truth
    "admire": """
        {a} had {t.a}. {t.they} had been a present from [long ago|an old friend|a far country], and nobody was allowed to play near {t.it}.
        In the house stood {t.a} that belonged to {a}. "Be careful with {t.it}," {a} always said.
        {a} loved {t.a} that stood in the house. It was very old.
    """,
    "break": """
        {A} played with {u} inside the house. Crash! {u} hit {t}, and {t.they} broke.
        One day, {a} was alone and played with {u} in the house. {u} flew through the room and hit {t}. Now {t.they} {t.was} broken.
        "I will be careful," said {a}, and played inside with {u}. But a moment later {t} fell down and broke.
    """,
    "break.quarrel": """
        They both pulled. Crack! {t} broke, and each of them held a piece.
        {a} pulled on one side and {b} on the other, and then {t} broke.
    """,
    "hide": """
        Nobody had seen it. Quickly, {a} hid the pieces [under the bed|behind the door|in a drawer|under a blanket].
        {A} pushed the pieces [under the rug|behind the curtain|under the sofa] and tried to look busy.
    """,
    "who": """
        "Who broke {t.my}?" asked {a} in the evening.
        "{b}, do you know what happened to {t.my}?" asked {a}.
        {a} came home and looked around. "Where {t.is} {t.my}?"
    """,
    "lie": """
        "It was {n}," said {a}, and {a.his} face turned red.
        "Maybe it was {n}," {a} said in a small voice.
    """,
    "guilt.lie": """
        That night, {a} could not sleep. The lie felt like a stone in {a.his} tummy.
        But {a} felt worse and worse. Supper did not taste good, and {a.his} heart was heavy.
        {A} had never felt so bad. It was not right to lie to {b}.
    """,
    "guilt.break": """
        {A} looked at the pieces, and {a.his} heart was heavy. What would {b} say?
        {A} thought of hiding the pieces. But that would not be right.
        "I could say it was the wind," thought {a}. But that would be a lie.
    """,
    "confess": """
        So {a} went to {b}. "I broke {t.your}," {a} said. "I'm sorry."
        At last, {a} told {b} the truth. "It was me. I broke {t.the}."
        "I have to tell you something, {b}," said {a}. "I was playing inside, and I broke {t.your}."
    """,
    "forgive.truth": """
        {a} was quiet for a moment. Then {a} said, "I am sad about {t.my}. But I am glad that you told me."
        {a} hugged {b}. "Thank you for telling the truth. That took courage."
        "{t.the} can be mended," said {a}. "But a lie is hard to mend. I'm proud of you, {b}."
    """,
    "plan_mend": """
        "Let us mend {t.it} together," said {a}. "Can you find what we need?"
        "Perhaps we can fix {t.it}," said {a}. "What do we need, {b}?"
    """,
    "mend": """
        With {u}, {a} and {b} mended {t}. {t.they} looked almost like new.
        {A} worked slowly and used {u}, and {b} helped. In the end, {t} {t.was} whole again.
        Piece by piece, {a} mended {t} with {u}. {b} clapped.
    """,
    # Presents
    "reason.birthday": """
        It was {b.s} birthday, and {a} had no present yet.
        "Tomorrow is my birthday!" said {b}. {a} wanted to find the best present in the world.
    """,
    "reason.ill": """
        But today, {b} was ill and had to stay in bed. {a} wanted to bring a present.
        "{b} is ill today," said a neighbor. {a} wanted to find a present to cheer up {b}.
    """,
    "reason.sad": """
        But for some days, {b} had been sad and quiet. {a} thought that a present might help.
        Lately, {b} never smiled. "I will find a present for {b}," {a} thought.
    """,
    "reason.moving": """
        But {b} was going to move far away. {a} wanted to give {b} something to remember.
        "Next week we are moving away," said {b}. {a} was sad and wanted to find a present.
    """,
    "reason.thanks": """
        {b} had always been good to {a}. So {a} wanted to find a present to say thank you.
        {b} had helped {a} so often. "I want to give {b} a present," {a} thought.
    """,
    "want_gift": """
        On the table lay {t.a}. It was just the right present for {f}!
        {A} saw {t.a} and thought of {f} at once. "How much {t.is} {t.this}?"
        "{t.this} would be perfect for {f}," said {a}, and pointed at {t.a}.
    """,
    "price": """
        "I don't want money," said {a}. "But I have always wanted {u.a}. Find {u.one} for me, and {t.the} {t.is} yours."
        "Bring me {u.a}," said {a}, "and you can have {t.the}."
        {a} thought for a while. "I will give you {t.the} for {u.a}, {b}."
    """,
    "know_where": """
        {A} knew where to look. Was there not {t.a} {p.in}?
        "I know where to look," said {a}. "There is one {p.in}!"
        {A} thought hard. The right place to look was surely {p.in}.
    """,
    "spot": """
        And really, there lay {t}! But {t.they} {t.was} not easy to get at.
        There lay {t}! But {a} could not reach {t.it}.
    """,
    "trade": """
        "Here {u.is} {u.the}," said {a}. {b} smiled and gave {a} {t}.
        {A} gave {b} {u}, and {b} gave {a} {t}. They were both happy.
        "You found {u.one}!" cried {b}, and put {t} into {a.s} hands.
    """,
    "present": """
        "This is for you, {b}," said {a}, and gave {b} {t}.
        {A} hid {t} behind {a.his} back. "Close your eyes, {b}! Now open them!"
        {A} put {t} into {b.s} hands. "I got {t.it} just for you."
    """,
    "thanks_present": """
        "{t.the}! For me?" cried {a}. "[I will keep {t.it} forever|I have never had a better present|I love {t.it}]!"
        {a} laughed and hugged {b}. "How did you get {t.the}?" And {b} told the whole story.
        {a} held {t} tight. "[Nobody ever gave me such a thing|What a good friend you are], {b}."
    """,
    # An errand
    "send": """
        "{b}, please take {t.my} to {n}," said {a}. "You will find {n} {p.in}."
        "I need you to bring {t.the} to {n}," {a} told {b}. "Go {p.to}. Can you do that?"
        {a} called {b}. "{n} is waiting for {t.the}. Will you take {t.it} {p.to}?"
    """,
    "give.parcel": """
        {a} put {t} into a bag and gave it to {b}.
        {b} nodded, and {a} gave {b} {t} and a kiss on the nose.
        {a} wrapped up {t} and gave the parcel to {b}.
    """,
    "noise": """
        Then there was a noise. [Scratch, scratch|Tap, tap, tap|Whoo, whoo|Crack]!
        Something moved. [Scratch, scratch|Rustle, rustle|Tap, tap, tap], it went.
        "[Whoo|Grrr|Shhh]," said something in there.
    """,
    "only": """
        Then something came closer, and it was only {a}! "Did I scare you? I'm sorry," said {a}.
        Two eyes shone. But it was only {a}, looking for supper. "Hello," said {a}. "I was afraid of you!"
        And who made all that noise? It was only {a}. {b} laughed.
    """,
    "deliver": """
        {A} gave {t} to {b}, just as {a.he} had promised.
        "Here {t.is} {t.your}," said {a}, and gave {t} to {b}.
        There was {b} at last, and {a} handed over {t}.
    """,
    "tell_adventure": """
        "I came through {p}," said {a}, "and I heard a noise. But I was not afraid. Well, only a little."
        {A} told {b} about the noise in the dark.
    """,
    "praise": """
        "[What a brave {b.species} you are|You have a brave heart|That was very brave], {b}," said {a}.
        {a} gave {b} a warm drink. "[Not many would dare to do that|You are braver than you think], {b}."
    """,
    # Making something together
    "occasion": """
        Soon there would be a [big|great|grand] {n}, and everybody wanted to bring something.
        It was the day before the {n}.
        "The {n} is coming," said {a}. "Let us do something special."
    """,
    "plan": """
        {a} and {b} wanted to {n}.
        "Let's {n}!" said {a}, and {b} liked the idea.
        "I know," {a} told {b}. "We can {n}!"
    """,
    "invite": """
        "Will you help us with the {n}, {b}?" {a} asked.
        {A} asked {b}, too. "Do you want to make the {n} with us?"
        Then {b} came by. "Come and help us make the {n}!" said {a}.
    """,
    "decline.lazy": """
        "Not now," {a} yawned. "[I want to sleep|That is too much work|I am tired]."
        {a} lay down in the shade. "Work makes me tired, {b}."
    """,
    "decline.boastful": """
        "I could do it much better alone," said {a}, and walked away.
        "You two will never do it," {a} laughed. "Only I know how."
    """,
    "decline.stubborn": """
        "No," said {a}. "I don't want to."
        "No, no and no," said {a}, who always said no first.
    """,
    "decline.proud": """
        "I don't do dirty work," said {a}, looking the other way.
        "That is not for me," said {a}, and walked away.
    """,
    "gather": """
        {A} went {p.to} and came back with {n}.
        {A} found {n} {p.in}.
        {a} brought {n}, all the way from {p}.
        It was {a} who got {n} {p.from}.
    """,
    "work": """
        {a} and {b} worked all [morning|afternoon|day] on the {n}.
        {a} held and {b} pushed, and slowly the {n} took shape.
        They [sang while they worked|got very dirty|had a lot of fun], {a} and {b}.
    """,
    "setback": """
        But the first {n} was not good at all. {b} wanted to cry.
        At first, everything went wrong, and the {n} fell apart.
        "Oh dear," said {b}. "The {n} does not look right."
    """,
    "again": """
        "Let's try again," said {a}. "We have learned how not to do it, {b}."
        "It does not matter, {b}," said {a}. "We just start again."
        {a} and {b} laughed and started all over again.
    """,
    "done": """
        And then the {n} was ready. It was the best {n} that {a} and {b} had ever seen.
        At last the {n} was finished. "We did it!" cried {a} and {b}.
        Everybody who saw the {n} clapped for {a} and {b}.
    """,
    "regret": """
        {a} stood far off and looked at the {n}. "I wish I had helped you, {b}."
        "It is so beautiful," said {a} in a low voice. "I am sorry that I did not help."
        Now {a} was sorry. "[May I still join you|Is it too late to help], {b}?"
    """,
    "welcome": """
        "Come, {b}," said {a}. "There is enough for all of us. You can help next time."
        {a} took {b} by the hand. "It is never too late. You can help us clean up!"
        "Of course," said {a}. So {b} washed the pots and swept the floor, and then they all had fun together.
    """,
    # A quarrel
    "want_turn": """
        "Let me have {t.the} now," said {a}. "It's my turn."
        "I want to {t.use} {t.the} too!" said {a}.
        {a} watched for a while. "Can I {t.use} {t.it}, {b}?"
    """,
    "refuse_turn": """
        "No, {t.they} {t.is} mine!" said {a}.
        "You can't, {b}," said {a}. "You would only break {t.it}."
        {A} held {t} tight and shook {a.his} head.
    """,
    "quarrel": """
        {b} took hold of {t}. "Give {t.it} to me!" "No!" cried {a}.
        {a} and {b} both pulled at {t} and shouted.
        "Mine!" shouted {a}. "Mine!" shouted {b}.
    """,
    "blame": """
        "Look what you did!" cried {a}. They did not speak for a long time.
        {a} sat down on one side and {b} on the other. Both were [angry|sad].
        "It's your fault, {b}!" said {a}. But {a} knew that this was not quite true.
    """,
    "make_up.broken": """
        At last {a} said, "I'm sorry, {b}. [I should not have pulled|You are more important than {t.the}|Let's be friends again]."
        "I'm sorry," said {a}. "Me too," said {b}. "Let's mend {t.the}."
        After a while, {a} was not angry any more. "{b}, shall we mend {t.it} together?"
        "{t.the} can be mended," said {a}. "Come, {b}, let's be friends again."
    """,
    "make_up.stuck": """
        At last {a} said, "I'm sorry, {b}. [I should not have pulled|You are more important than {t.the}|Let's be friends again]."
        "I'm sorry," said {a}. "Me too," said {b}. "Let's get {t.the} back."
        After a while, {a} was not angry any more. "{b}, shall we get {t.it} back together?"
        "We will never get {t.the} back like this," said {a}. "Come, {b}, let's be friends again."
    """,
    "mend.together": """
        With {u}, {a} and {b} mended {t}. {t.they} {t.was} almost as good as new.
        {a} held the pieces, {b} used {u}, and soon {t} {t.was} whole again.
    """,
    "turns": """
        After that, {a} and {b} took turns. First {b} {t.used} {t}, then {a}.
        "You go first, {b}," said {a}. And {b} {t.used} {t} and laughed.
        From then on, {t} belonged to both {a} and {b}, and it was twice as much fun.
    """,
    # Learning
    "wish": """
        More than anything, {a} wanted to {n}.
        {A} had one big wish, which was to {n}.
        "I wish I could {n}," said {a} every evening.
        All the others could {n}. Only {a} could not.
    """,
    "try": """
        {A} tried it there, but {n}. {A} tried again, and again {n}.
        The first time, {n}. The second time, {n} too.
        {A} did {a.his} best, but each time {n}.
    """,
    "mock": """
        {a} saw it and laughed. "You will never learn to {n}, {b}!"
        "Ha, ha!" said {a}. "I could {n} when I was a baby."
        "Is that all?" laughed {a}. "Look at {b}, who can't even {n}!"
    """,
    "give_up": """
        "I will never learn to {n}," said {a}, and sat down.
        {A} wanted to give up. "I just can't {n}."
        {A} kicked a stone and went away. It was too hard to {n}.
    """,
    "complain": """
        "I can't {n}," said {a}. "I have tried and tried."
        {A} told {b} everything. "I want to {n}, but I can't."
        "Can you {n}, {b}?" asked {a}. "I can't."
    """,
    "advice": """
        "Nobody can {n} on the first day," said {a}. "I fell a hundred times. [Practice a little every day|One small step at a time], {b}."
        {a} smiled. "When I was little, I could not {n} either. [I tried every day|I did not give up]. You must do the same."
        "Try it slowly and try it every day," said {a}. "Then you will {n}, {b}."
    """,
    "practice": """
        So {a} practiced {n} every day, in the morning and in the evening.
        Day after day, {a} went on {n}. On {day}, it went a little better.
        {A} practiced {n} for a week, and then for another week.
    """,
    "setback_skill": """
        Sometimes {n}, but {a} only laughed and tried again.
        Once more, {n}. "One small step at a time," {a} said.
        When {n}, {a} got up and started over.
    """,
    "succeed": """
        And one fine day, it worked. {A} {n}!
        Then came the day when {a} {n}. "I did it!" cried {a}.
        At last, nobody could believe it, {a} {n}.
    """,
    "impress": """
        {a} saw it and did not laugh any more. "Can you show me how to {n} like that, {b}?"
        "That was better than I can do it," said {a}. "Will you teach me to {n}, {b}?"
        Now {a} stood there with an open mouth. "I should not have laughed, {b}."
    """,
    "teach": """
        "Of course, {b}," said {a}. "We can practice together."
        "Gladly," said {a}. "It only takes time, {b}."
    """,
    # A lost baby
    "hear_cry": """
        Then {a} heard a sound. {n.cap}, {n}! It came from behind a bush.
        "{n.cap}, {n}!" Something was crying there.
        {A} stopped and listened. Somewhere, a small voice went {n}, {n}.
    """,
    "lost_baby": """
        It was {a}, all alone. "I can't find my mother," said {a}.
        There sat {a}, shaking all over. "I want my mother!"
        {b} looked closer and saw {a}. "I am lost," it said, and a tear rolled down its face.
    """,
    "ask_home": """
        {A} sat down next to {b}. "Where do you live, little one?"
        "Don't be afraid," said {a}. "What does your home look like?"
        {A} stroked {b}. "Tell me what you can see from your home."
    """,
    "clue": """
        {a} thought hard. "I don't know what it is called. But I remember one thing. {n}."
        "I only know one thing about it," said {a}. "{n}."
        {a} stopped crying for a moment. "At home, it is like this. {n}."
    """,
    "promise_help": """
        "I will bring you home, I promise," said {a}.
        "Come with me," said {a}. "We will find your mother."
        {A} dried its tears. "Don't worry, we will find her."
    """,
    "go.lead": """
        {a} and {b} went {p.to}.
        So {a} took {b} {p.to}.
        {A} walked ahead, and {b} came along {p.to}.
    """,
    "wrong_home": """
        {a} looked around and shook its head. "This is not my home."
        But {a}'s mother was not there. "It looks different here," said {a}.
        "No, this is not the right place," said {a} sadly.
    """,
    "know_home": """
        {A} thought about the words of the little one. "I know! It must be {p}!"
        Then {a} understood. "There is only one place like that, {p}!"
    """,
    "carry": """
        {b} was tired, so {a} carried it all the way.
        {A} took {b} on {a.his} back, for its legs were short.
    """,
    "reunite": """
        And there was {b}! {a} ran to her as fast as it could. "Mama!"
        "My baby!" cried {b}, and {a} pressed close to her.
        {b} had been looking everywhere. Now she hugged {a}, again and again.
    """,
    "mother_thanks": """
        "You brought my little one home," said {a}. "How can I thank you, {b}?" "I'm just glad," said {b}.
        "Thank you, {b}," said {a}. "You are always welcome here."
        {a} gave {b} [a soft feather|a smooth pebble|a sweet berry|a kiss on the cheek]. "You have a good heart."
    """,
    # A seed
    "seed": """
        "Here is a present for you," said {a}, and put {n.a} seed into {b.s} hand. "Plant it and take good care of it."
        {a} gave {b} a tiny seed. "This will be {n.a}," {a} said, "if you can wait."
        "Do you know what this is, {b}?" asked {a}. "It is {n.a} seed. It needs earth, water and time."
    """,
    "plant": """
        {A} made a hole in the ground {p.in}, put in the seed and covered it with earth.
        {p.in}, {a} dug a small hole and planted the {n} seed.
        {A} planted the seed {p.in} and put a little stick next to it.
    """,
    "nothing_grows": """
        The next day, {a} came to look. There was nothing to see. The day after, there was still no {n}.
        Every day {a} looked at the ground. But there was only earth, and no {n}.
        "Where is my {n}?" asked {a} on the second day, and on the third day too.
    """,
    "temptation": """
        "I will dig it up to see what it is doing," said {a}, and took a spoon.
        "It is dead," said {a}. "I will not water it any more."
        {A} was tired of waiting and shouted at the ground. "Grow!"
    """,
    "patience": """
        But {a} said, "Good things take time, {b}. {n.a} does not grow faster when you pull at it."
        "Wait," said {a}. "Under the earth, the {n} is working hard. You just can't see it, {b}."
        {a} laughed. "Were you so big on your first day, {b}? Give it water and wait."
    """,
    "watering": """
        So {a} brought water every morning and pulled out the weeds.
        {A} gave it water when it was dry and covered it when it was cold.
        From then on, {a} came with a can of water each day, and waited.
    """,
    "sprout": """
        And one morning, there {n.be} {n}! {A} danced around it.
        Then, after two weeks, {a} saw {n}. "It is alive!"
        On {day}, something had come out of the earth. There {n.be} {n}!
    """,
    "harvest": """
        It grew and grew. By the end of summer, there {n.be} {n}.
        The weeks went by. At last, {a} could be proud of {n}.
        And when the time had come, {a} had {n}, the finest {p.in}.
    """,
    "share_harvest": """
        {A} showed everything to {b} first. "I waited for it," {a} said, "and it was worth it."
        {A} gave the best part to {b}.
        "This is for you, {b}," said {a}, "because you told me to wait."
    """,
    "share_harvest.friend": """
        {A} shared everything with {b}.
        "Half of it is for you, {b}," said {a}.
    """,
    # A promise
    "duty": """
        "I have to go out," said {a}. "Will you {n} for me, {b}?"
        "{b}, please {n} before noon," said {a}. "It is important."
        {a} put on a hat. "I am going to town. Don't forget to {n}, {b}."
    """,
    "promise": """
        "I promise," said {a}.
        "Yes, {b}, I promise to {n}," said {a}.
        {A} nodded. "You can count on me, {b}. I promise."
    """,
    "forget": """
        The time flew by, and {a} did not think of the promise at all.
        {A} had promised to {n}. But now it was gone from {a.his} mind.
        Hours went by. Nobody thought about the promise to {n}.
    """,
    "harm": """
        Oh no! The promise! But it was too late. {n.cap}.
        When {a} came in, {n}. Only then did {a} remember.
        {n.cap}. "I forgot!" cried {a}.
    """,
    "guilt.promise": """
        {A} felt hot and cold. What would {b} say?
        {A} wanted to hide somewhere far away from {b}.
        {A} felt terrible, for {b} had trusted {a.him}.
    """,
    "confess.promise": """
        When {b} came home, {a} said, "I broke my promise. I am sorry."
        "I forgot all about it," {a} told {b}. "I was playing. Please forgive me."
        {A} did not make up a story. "It was my fault, {b}," {a.he} said.
    """,
    "repair": """
        Then {a} [set to work|got to work at once], and {n}.
        And {a} did not wait to be asked, but {n}.
        All by {a.himself}, {a} {n}.
    """,
    "forgive.promise": """
        "You made it good again," said {a}. "That is what counts, {b}."
        {a} saw it and was not angry any more. "Everybody forgets something once. But a promise is a promise."
        "Thank you for being honest," said {a}. "I will trust you again, {b}."
    """,
    # A race
    "brag": """
        One day, {a} came by. "I am the fastest of all," said {a}. "You are as slow as a snail, {b}!"
        "Nobody can run like me," said {a} to everyone who would listen. "Least of all {b}!"
        But there was also {a}, who laughed at {b} for being slow.
    """,
    "challenge": """
        "Then let us have a race {p.to}," said {a}. "Tomorrow morning."
        {A} did not get angry. "Let's see who gets {p.to} first, {b}."
        "Shall we race {p.to}?" asked {a} in a quiet voice. {b} laughed out loud.
    """,
    "start": """
        "Ready, steady, go!" {b} shot off like an arrow. {a} came behind, step by step.
        Everybody came to watch. One, two, three, and off went {a} and {b}.
        A whistle blew, and the race began. {b} was gone at once, and {a} ran as well as {a} could.
    """,
    "ahead": """
        Soon, {a} was far ahead and could not even see {b} any more.
        {A} came {p.to} long before {b}.
        {p.in}, {a} looked back. There was no sign of {b}.
    """,
    "pause": """
        "I have plenty of time," said {a}, and {n}.
        So {a} {n}.
        {A} was so sure to win that {a} {n}.
    """,
    "plod": """
        But {a} did not stop. Left, right, left, right, on and on {a} went.
        Meanwhile, {a} came closer and closer, one step after the other.
        {A} was tired and hot, but did not give up.
    """,
    "hurt": """
        There sat {a}, who had run too fast and hurt a foot. "Ow, ow!" cried {a}. "I can't walk."
        But what was that? {a} lay on the ground. "Help me, {b}! I fell."
    """,
    "stop_help": """
        {A} could have won now. But {a} stopped. "Lean on me, {b}."
        "Winning is not so important," said {a}, and helped {b} up.
    """,
    "win": """
        When {b} looked up again, it was too late. {a} was already there! {a} had won.
        {b} ran and ran, but {a} came {p.to} first. Everybody cheered.
        "[Hurray|Bravo], {a}!" the others shouted. {a} was the winner, and {b} came in second.
    """,
    "shame": """
        {a} did not feel so big any more. "I should not have laughed at you, {b}."
        "How did you do that, {b}?" asked {a} with a red face.
        {a} looked at the ground. "You won, {b}. I was wrong."
    """,
    "kind_win": """
        "It was a good race," said {a}, and shook {b.s} hand.
        {A} did not brag. "Next time we will run together, {b}."
        "Let's have a drink of water together," said {a}, and {b} was glad.
    """,
    "make_up.race": """
        "You could have won," said {a}. "Why did you help me, {b}?" "Because you needed help," said {b}.
        "I will never laugh at you again," {a} told {b}. "You are the real winner."
    """,
    # A storm
    "storm": """
        Suddenly, the sky turned black. [Boom|Crash]! Thunder rolled, and it began to pour.
        Then a cold wind came up, and big drops fell. Soon it rained harder than ever.
        A storm came up. Lightning flashed, and water ran down everywhere.
    """,
    "shelter": """
        Luckily, {a} had {t.a} and sat down under {t.it}, nice and dry.
        {A} crept under {t}. Not one drop could get in.
    """,
    "knock": """
        Then {a} came running, wet from top to toe. "Is there room for me, {b}?"
        "Please, may I come in?" asked {a}, shaking in the cold.
        The {n} to come was {a}. "I am so wet," said {a}. "May I come under {t.the}?"
    """,
    "no_room": """
        "No, there is only room for one," said {a}. "{t.the} {t.is} mine."
        {A} did not move over. "It is too small for two," {a} said.
    """,
    "guilt.cold": """
        But then {a} saw how {b} shook in the rain, and felt sorry.
        {b} turned away sadly. {a} could not bear to look.
    """,
    "room": """
        "Come in, {b}," said {a}. "There is always room for one more."
        {A} moved over. "Sit here, {b}. It will be a bit tight."
        "Of course," said {a}, and {b} crept under {t}.
    """,
    "warm": """
        So they sat there, {a}, {b} and {n}, close together. It was so warm that nobody was cold any more.
        {a} told a funny story, {b} knew a song, and {n} made everyone laugh.
        {a}, {b} and {n} kept each other warm and listened to the rain.
    """,
    "storm_over": """
        After a while, the storm was over, and the sun came out.
        At last, the rain stopped. A rainbow stood in the sky.
    """,
    "gift_back": """
        Before {a} left, {a} gave {b} [a big shiny nut|a basket of berries|a smooth white stone]. "Thank you for the dry place."
        The next morning, {a} came back with [fresh bread|a bunch of flowers|a jar of honey] for {b}.
    """,
    "make_up.shelter": """
        "Without you, I would have caught a cold, {b}," said {a}. "Now we are friends."
        "I hope there will be another storm soon," said {a}, and {b} had to laugh.
    """,
    # Found
    "discover": """
        Something lay on the ground. It was {t.a}!
        What was that? {A} bent down. It was {t.a}, and there was nobody around.
        {A} almost stepped on something. It was {t.a}!
    """,
    "tempted": """
        "How pretty!" said {a}. "Now {t.they} {t.is} mine."
        "Finders keepers," thought {a}, and put {t} away.
        {A} had never owned anything so fine. {a.he} wanted to keep {t}.
    """,
    "warn": """
        "But somebody must have lost {t.it}," said {a}. "Think about it, {b}."
        {a} shook {a.his} head. "{t.the} {t.isnt} yours, {b}."
    """,
    "weep": """
        There sat {a}, and wept. "I have lost {t.my}," said {a}. "I have looked everywhere."
        There was {a}, looking under every stone. "Have you seen {t.my}, {b}?" asked {a}. "My mother gave {t.it} to me."
        {b} met {a}, who looked very unhappy. "{t.my} {t.is} gone," said {a}.
    """,
    "struggle": """
        {A} felt {t} in {a.his} pocket. Nobody would ever know. But {b} was so sad!
        {A} did not know what to do. It would be easy to say nothing.
        For a moment, {a} wanted to walk away from {b}. But that did not feel right.
    """,
    "hand_back": """
        "I found {t.it}," said {a}, and gave {b} {t}.
        {A} took out {t}. "Is this yours, {b}? I found {t.it} on the ground."
        "Here {t.is} {t.your}, {b}," said {a}. "I wanted to keep {t.it}, but {t.they} {t.is} yours."
    """,
    "reward": """
        {a} laughed and cried at once. "You are an honest {b.species}, {b}. Thank you!"
        "[Bless you|How can I ever thank you], {b}!" said {a}, and {t} shone in the light.
        {a} hugged {b}. "You could have kept {t.the}. But you did not."
    """,
    # A locked box
    "discover_box": """
        There, half hidden, stood {t.a}. What could be in it?
        {A} saw {t.a} that nobody had opened for years.
        Behind some old things, {a} found {t.a}.
    """,
    "inside": """
        Inside lay {t.a}, as good as new.
        In {u} was {t.a}, wrapped in soft paper.
        {A} looked into {u}. There lay {t.a}!
    """,
    "done.box": """
        A note said, "For the one who does not give up." So {t} {t.was} for {a}!
        On a card stood, "Keep me and love me." {A} took {t} home.
        Nobody knew whose {t.they} had been. So {a} was allowed to keep {t}.
    """,
    # Hide and seek
    "let_us_hide": """
        "Let's play hide and seek!" said {a}. So {b} counted to [ten|twenty|fifty].
        "You count and I hide," said {a}. {b} closed both eyes. "One, two, three!"
        They played hide and seek, and it was {a} who went to hide. {b} counted.
    """,
    "hide_self": """
        {A} ran {p.to} and hid there.
        Quick as a mouse, {a} hid {p.in}.
        {A} tiptoed away and found a good spot {p.in}.
    """,
    "seek": """
        No, {b} was not there.
        "Are you here, {b}?" {a} called. Nobody answered.
        {A} looked behind everything, but there was no {b}.
        {a} found [a snail|an old shoe|a spider|a cobweb], but not {b}.
    """,
    "giveaway": """
        It was very quiet. Then somebody {n}. Was that {a}?
        There was no sign of {a}. But all at once somebody {n}.
        {A} tried to keep still, but then {a} {n}.
    """,
    "found_you": """
        "Found you, {b}!" cried {a}, and they both laughed.
        "I see you, {b}!" called {a}. {b} had been {p.in} all the time.
        "There you are, {b}!" {a} had won.
    """,
    "next_turn": """
        "Now it's my turn to count," said {a}. "Go and hide, {b}!"
        "How did you find me, {b}?" asked {a}. "I heard you," said {b}.
    """,
    # A noise in the night
    "to_bed": """
        At night, {a} lay in bed with {t} and could not sleep.
        It was late. {a} was already in bed, and {t} {t.was} there, too.
        One night, {a} woke up. It was dark, and {t} {t.was} close by.
    """,
    "noise_night": """
        There! {n}, {n}. What was that?
        Then there was a noise. {n}, {n}, {n}.
        {n}, {n}! Something was out there.
    """,
    "fear_night": """
        {A} held {t} tight and did not dare to move.
        {A} pulled the blanket over {a.his} head. "I'm scared."
        "Is it a [monster|ghost|giant]?" whispered {a}. {a.his} heart beat fast.
    """,
    "call": """
        "{b}!" called {a}. "There is something in the dark!"
        At last {a} called for {b}. "Please come!"
        {A} ran out of bed to {b}. "I heard something!"
    """,
    "look_after": """
        {a} came with {u}. "Let's look together, {b}."
        "We will find out," said {a}, and lit {u} for {b}.
        {a} took {b} by the hand and held up {u}.
    """,
    "only_night": """
        And what was it? It was only {n}!
        "Look, {b}," said {a}. "It is only {n}."
        {b} had to laugh, for it was nothing but {n}.
    """,
    "good_night": """
        {a} tucked in {b} and {t}. "Good night, [sleep tight|sweet dreams]."
        "Good night, {b}," said {a}, and put {t} under the blanket, too.
        Soon {b} was fast asleep, holding {t}. {a} smiled and closed the door.
    """,
    # A mess
    "mess": """
        {A.his} room was a mess. Things lay [on the floor|everywhere|in every corner].
        You could not see the floor in {a.s} room, so many things lay about.
        {A} never put anything away, and {a.his} room looked like it.
    """,
    "needed": """
        On the day of the {n}, {a} wanted to take {t.a}. But where {t.was} {t.they}?
        "I need {t.my} for the {n}," said {a}. But {t.the} {t.was} nowhere to be seen.
        Soon the {n} would start, and {a} could not find {t}.
    """,
    "rummage": """
        {A} threw things left and right, and the mess only got bigger.
        {A} looked here and there, but in such a mess one can't find anything.
        "Somebody must have taken {t.it}!" said {a}.
    """,
    "tidy_first": """
        "First tidy your room, {b}," said {a}. "Then you will find {t.your}."
        {a} looked in. "If everything had its place, {b}, you would not have to look for {t.your}."
        "Put away one thing after the other, {b}," said {a}. "I will help you."
    """,
    "turned_up": """
        {n.cap} lay {t.a} that {a} had missed for [weeks|days|a long time].
        {A} found {t.a} {n}.
        "Look, {t.my}!" cried {a}, for {t.they} had been {n} all along.
    """,
    "there_it_is": """
        And last of all, {n}, there {t.was} {t.the}!
        Then {a} looked {n}. "{t.my}!"
        When almost everything was done, {a} saw {t.the} {n}.
    """,
    # Trading toys
    "has_too": """
        {a} had something nice, too. It was {t.a}.
        {a}, on the other hand, had {t.a}.
        And {a} had {t.a} and never lent {t.it} to anybody.
    """,
    "envy": """
        {A} looked at {t.the} and thought that {t.they} {t.was} nicer than {u.the}. "Let's swap, {b}!"
        "I like yours better," said {a} to {b}. "You can have {u.my} if I get {t.your}."
        "{t.your} {t.is} so much nicer than {u.my}," said {a}. "Shall we swap, {b}?"
    """,
    "trade.toys": """
        So {a} gave {u} to {b} and got {t}.
        {b} agreed. Now {a} had {t}, and {b} had {u}.
    """,
    "misses": """
        But soon {a} thought of {t}. How {b} laughed with {t.it}!
        After a while, {a} felt strange. {a.he} missed {t}.
        But it was not the same. {A} wanted to have {t} back.
    """,
    "swap_back": """
        {a} did not look happy either. "Can I have {u.my} back, {b}?"
        "I miss {u.my}," said {a} in a low voice. "Do you miss {t.the}, {b}?"
        Then {a} came over. "{b}, shall we swap back?"
    """,
    "trade.back": """
        So {a} gave back {u} and got {t} again.
        {A} put {u} into {b.s} hands and took {t}. Now everything was in its place.
    """,
    # A picnic
    "picnic": """
        {a} and {b} wanted to have a picnic. {a} had {t.a}, and {b} had {u.a}.
        "Let's eat outside!" said {a}. {a} packed {t.a}, and {b} packed {u.a}.
        It was picnic day. {b} brought {u.a}, and {a} brought {t.a}.
    """,
    "spill": """
        But oh no! {t.the} {n}.
        When they sat down, {a} saw that {t.the} {n}.
        Then it happened. {t.the} {n}.
    """,
    "halve": """
        {a} saw it. "We still have {t.my}, {b}. Half of {t.it} is for you."
        "Don't be sad, {b}," said {a}. "{t.my} {t.is} big enough for two."
    """,
    "thank_food": """
        "That was the best {t.noun} in the world," said {a}. "Thank you, {b}!"
        "Next time, I will share with you, {b}," said {a}.
        "A shared {t.noun} tastes better than a whole one," said {a}, and {b} laughed.
    """,
    # Endings
    "evening": """
        {n}.
        {n}, and it was time to go home.
        {n} when {a} [came home|sat by the window|went to bed] that {day}.
        {n}. {a} was back {home}.
        In the evening, {n.low}.
    """,
    "keepsake": """
        From that day on, {a} took good care of {t}.
        That night, {t} {t.was} right next to {a.s} bed.
        {A} still has {t} today.
        And {t}? {t.they} {t.was} always close to {a}, day and night.
        {A} put {t} in a safe place and never let {t.it} out of sight again.
    """,
    "moral.care": """
        {A} had learned to [look after|take care of] the things one loves.
        From then on, the {a.trait} {a.species} always put things back in their place.
        "I will look twice from now on," said {a}.
    """,
    "moral.ask": """
        {A} had learned that it is [good|all right|never wrong] to ask for help.
        One question can save a long search, and {a} never forgot it.
        "Next time, I will ask [sooner|right away]," said {a}.
        Even the {a.trait} {a.species} knew it now. Nobody has to do everything alone.
    """,
    "moral.favor": """
        {A} had learned that those who help others [are helped|get help] themselves.
        One good turn brings another, as {a} now knew.
        "If I help you, you help me," said {a}. "That is how it works."
    """,
    "moral.think": """
        {A} had learned that a quiet thought is better than a hundred tears.
        First think, then run. That is what {a} tells everyone today.
        "I should always think first," said {a}.
    """,
    "moral.together": """
        {A} had learned that many hands make light work.
        Together, one can do what nobody can do alone.
        "We are a good team," said {a}, and that was true.
        What is hard for one is easy for two, and {a} never forgot it.
    """,
    "moral.courage": """
        {A} had learned that being brave does not mean being without fear.
        Those who are afraid and go on are the bravest of all.
        Since that day, {a} is not so afraid of the dark any more.
        The {a.trait} {a.species} had found out how brave {a.he} could be.
    """,
    "moral.kindness": """
        {A} had learned that kindness always comes back.
        Whoever shares today finds a friend tomorrow.
        A small kindness is never lost, and {a} knew it now.
    """,
    "moral.truth": """
        {A} had learned that the truth makes the heart light.
        A thing can be mended, but trust is hard to mend. So {a} always told the truth after that.
        "I will always tell the truth," said {a}, "even when it is hard."
    """,
    "moral.gift": """
        {A} had learned that giving makes the giver happy, too.
        The best presents are those one works for with love.
        It was hard to say who was happier, the one who gave or the one who got the present.
    """,
    "moral.share": """
        {A} had learned that sharing makes everything twice as nice.
        A toy is only a toy, but a friend is a friend.
        "It is more fun with two," said {a}, and that was the end of the quarrel.
    """,
    "moral.practice": """
        {A} had learned that practice helps more than wishing.
        Nobody is born a master. One has to try, and try again.
        "I can't do it yet," {a} likes to say today. "But I can learn it."
    """,
    "moral.small": """
        {A} had learned that even a small {a.species} can be a great help.
        Those who help the little ones have a big heart.
        Whenever somebody is lost now, {a} is the first to help.
    """,
    "moral.patience": """
        {A} had learned that good things need time.
        Those who can wait get the sweetest fruit.
        "Slowly, slowly," says {a} today, when someone can't wait.
    """,
    "moral.promise": """
        {A} had learned that a promise must be kept.
        First the work, then the play. The {a.trait} {a.species} never forgot it again.
        "When I promise something, I will do it," said {a}.
    """,
    "moral.boast": """
        {A} and all the others had learned that big words do not win a race.
        Slow and steady gets there in the end.
        Those who laugh at others often come in last.
    """,
    "moral.win_help": """
        {A} had learned that helping is better than winning.
        There are things more important than being first.
        And everybody said that {a} had won, even without a medal.
    """,
    "moral.room": """
        {A} had learned that there is always room for one more.
        A dry place is good, but a dry place with friends is better.
        Since then, nobody who knocks at {a.s} door has to stay in the rain.
    """,
    "moral.honesty": """
        {A} had learned that being honest feels better than any treasure.
        What belongs to others must go back to them.
        A good heart is worth more than gold, and {a} had one.
    """,
    "moral.forgive": """
        {A} had learned that it feels good to forgive.
        Those who say sorry should get a second chance.
        And a new friend is better than an old quarrel.
    """,
    "moral.listen": """
        {A} had learned that good ears find more than quick feet.
        Those who listen find what others miss.
        "You only have to listen," said {a}.
    """,
    "moral.look": """
        {A} had learned to look before being afraid.
        Most monsters are only [the wind|a mouse|a shadow], and {a} knew it now.
        By daylight, {a} laughed about it.
    """,
    "moral.tidy": """
        {A} had learned to put everything in its place.
        A place for everything saves a lot of time.
        From then on, the {a.trait} {a.species} tidied up every [evening|week].
    """,
    "moral.own": """
        {A} had learned that one's own things are dear, too.
        What others have only looks better from far away.
        "I like mine best," said {a}.
    """,
    "moral.share_food": """
        {A} had learned that sharing makes everyone full.
        There is always enough for those who share.
        A friend who shares is worth more than a full bag.
    """,
    "moral.try": """
        {A} had learned never to give up too soon.
        For those who look long enough, every lock has a key.
        "Never give up," says {a} to everyone.
    """,
}

# Why somebody feels what they feel: a clause about the event that caused it.
CAUSES = {
    "break": "{t.the} {t.was} broken",
    "lost_baby": "{a} had lost its mother",
    "fear": "{a.he} was so afraid",
    "fear_night": "there was something in the dark",
    "blow_away": "{t.the} had been carried off by the wind",
    "mishap": """
        {t.the} [{t.was} out of reach|could not be reached]
        {a.he} could not get at {t.the}
    """,
    "miss": """
        {t.the} {t.was} gone
        {a.he} had lost {t.the}
    """,
    "recover": """
        {t.the} {t.was} back
        {a.he} had {t.the} again
    """,
    "thank": """
        {b} had helped {a.him}
        {b} had been so kind
    """,
    "mend": "{t.the} {t.was} whole again",
    "present": "{b} loved {t.the}",
    "brave": "{a.he} had been so brave",
    "forgive": "everything was all right again",
    "reunite": "{a} was home again",
    "succeed": "all the work had been worth it",
    "deliver": """
        {b} had got {t.the}
        {t.the} {t.was} in good hands
    """,
    "make_up": "{a} was a friend now",
    "found_you": "it had been so much fun",
    "good_night": "there was nothing to be afraid of",
    "thank_food": "{b} had shared with {a.him}",
    "spill": """
        {t.the} {t.was} gone
        {a.he} was hungry and had nothing to eat
    """,
    "win": "{a.he} had not given up",
    "harvest": "the waiting was over",
    "done": "everything had gone well",
    "reward": "{t.the} {t.was} where {t.they} belonged",
}
