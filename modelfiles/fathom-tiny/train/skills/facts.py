"""The facts that the model learns: tables, one sentence for each fact, and the ways to ask for it.

A relation has wordings for training and wordings that are only asked in the held-out set. The answer to a fact is always
the same sentence: what varies is the question."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """`rows` map a key (one or more words) to the value; `sentence` and the wordings are format strings of `k` and `v`.
    `about` names the fact in reasoning. `follow` are questions that leave out what the turn before said ({k} is the new key)."""

    name: str
    rows: dict
    sentence: str
    about: str
    wordings: tuple
    unseen: tuple
    follow: tuple = ()
    language: str = "en"

    def answer(self, key: str) -> str:
        text = self.sentence.format(k=key, v=self.rows[key])
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Fact:
    relation: Relation
    key: str

    @property
    def value(self) -> str:
        return self.relation.rows[self.key]

    @property
    def answer(self) -> str:
        return self.relation.answer(self.key)

    @property
    def about(self) -> str:
        return self.relation.about.format(k=self.key)


def _table(text: str) -> list:
    return [line.split("|") for line in text.strip().splitlines()]


def _pairs(text: str) -> dict:
    return dict(pair.strip().split("=") for pair in text.replace("\n", " ").split(";") if pair.strip())


COUNTRIES = _table("""
France|Paris|Europe|French
Italy|Rome|Europe|Italian
Spain|Madrid|Europe|Spanish
Germany|Berlin|Europe|German
Portugal|Lisbon|Europe|Portuguese
Greece|Athens|Europe|Greek
Poland|Warsaw|Europe|Polish
Sweden|Stockholm|Europe|Swedish
Norway|Oslo|Europe|Norwegian
Denmark|Copenhagen|Europe|Danish
Finland|Helsinki|Europe|Finnish
Austria|Vienna|Europe|German
Hungary|Budapest|Europe|Hungarian
Ireland|Dublin|Europe|English
Russia|Moscow|Europe|Russian
Japan|Tokyo|Asia|Japanese
China|Beijing|Asia|Chinese
India|Delhi|Asia|Hindi
Korea|Seoul|Asia|Korean
Thailand|Bangkok|Asia|Thai
Vietnam|Hanoi|Asia|Vietnamese
Iran|Tehran|Asia|Persian
Iraq|Baghdad|Asia|Arabic
Turkey|Ankara|Asia|Turkish
Egypt|Cairo|Africa|Arabic
Morocco|Rabat|Africa|Arabic
Kenya|Nairobi|Africa|Swahili
Ghana|Accra|Africa|English
Senegal|Dakar|Africa|French
Cuba|Havana|America|Spanish
Canada|Ottawa|America|English
Peru|Lima|America|Spanish
Chile|Santiago|America|Spanish
Brazil|Brasilia|America|Portuguese
Colombia|Bogota|America|Spanish
Australia|Canberra|Oceania|English
""")

RELATIONS = (
    Relation(
        "capital", {c[0]: c[1] for c in COUNTRIES}, "The capital of {k} is {v}.", "the capital of {k}",
        ("What is the capital of {k}?", "What is {k}'s capital?", "Which city is the capital of {k}?", "Name the capital of {k}.",
         "What's the capital of {k}?", "Tell me the capital of {k}.", "The capital of {k} is which city?", "Capital of {k}?",
         "Do you know the capital of {k}?", "What city is the capital of {k}?"),
        ("Which city is {k}'s capital?", "Can you tell me the capital of {k}?", "Give me the name of the capital of {k}."),
        ("And of {k}?", "And the capital of {k}?", "What about {k}?", "And {k}?"),
    ),
    Relation(
        "continent", {c[0]: c[2] for c in COUNTRIES}, "{k} is in {v}.", "the continent of {k}",
        ("Which continent is {k} in?", "What continent is {k} in?", "On which continent is {k}?", "Where is {k}?",
         "In which part of the world is {k}?", "Name the continent of {k}.", "Where in the world is {k}?", "Tell me where {k} is."),
        ("{k} is on which continent?", "Do you know where {k} is?", "What is the continent of {k}?"),
        ("What about {k}?", "And {k}?", "And where is {k}?"),
    ),
    Relation(
        "language", {c[0]: c[3] for c in COUNTRIES}, "People in {k} speak {v}.", "the language of {k}",
        ("What language do people speak in {k}?", "Which language is spoken in {k}?", "What do people in {k} speak?",
         "Which language do they speak in {k}?", "What is the language of {k}?", "Name the language of {k}.",
         "What language is spoken in {k}?", "Tell me the language of {k}."),
        ("Which language do people in {k} speak?", "What's the language of {k}?", "Do you know what language they speak in {k}?"),
        ("What about {k}?", "And {k}?", "And in {k}?"),
    ),
    Relation(
        "colour",
        _pairs("the sky=blue; grass=green; snow=white; blood=red; a banana=yellow; a tomato=red; coal=black; milk=white; gold=yellow;"
               "a carrot=orange; the sun=yellow; the sea=blue; a frog=green; a lemon=yellow; chocolate=brown; a cherry=red;"
               "a crow=black; a pig=pink; a leaf=green; the night=black; salt=white; an elephant=grey; a cloud=white; wood=brown"),
        "{k} is {v}.", "the colour of {k}",
        ("What colour is {k}?", "Which colour is {k}?", "What is the colour of {k}?", "What color is {k}?", "Tell me the colour of {k}.",
         "Name the colour of {k}.", "Which colour does {k} have?", "What is the color of {k}?"),
        ("What colour does {k} have?", "Do you know the colour of {k}?", "Which color is {k}?"),
        ("And {k}?", "What about {k}?", "And what colour is {k}?"),
    ),
    Relation(
        "sound",
        _pairs("dog=woof; cat=meow; cow=moo; duck=quack; sheep=baa; pig=oink; horse=neigh; lion=roar; frog=croak; bee=buzz; snake=hiss;"
               "bird=tweet; mouse=squeak; wolf=howl; hen=cluck"),
        "A {k} says {v}.", "the sound of a {k}",
        ("What does a {k} say?", "What sound does a {k} make?", "Which sound does a {k} make?", "What noise does a {k} make?",
         "How does a {k} sound?", "What is the sound of a {k}?", "Tell me what a {k} says.", "What do you hear from a {k}?"),
        ("Which noise does a {k} make?", "Do you know what a {k} says?", "Tell me the sound of a {k}."),
        ("And a {k}?", "What about a {k}?", "And what does a {k} say?"),
    ),
    Relation(
        "young",
        _pairs("dog=puppy; cat=kitten; cow=calf; horse=foal; sheep=lamb; pig=piglet; duck=duckling; hen=chick; lion=cub; goat=kid;"
               "frog=tadpole; deer=fawn; swan=cygnet; goose=gosling"),
        "A young {k} is called a {v}.", "the young of a {k}",
        ("What is a young {k} called?", "What is a baby {k} called?", "What do you call a young {k}?", "What do you call a baby {k}?",
         "What is the name of a young {k}?", "Name the young of a {k}.", "How do you call a young {k}?", "What is the young of a {k}?"),
        ("What do people call a young {k}?", "What is the name of a baby {k}?", "Do you know what a young {k} is called?"),
        ("And a young {k}?", "And a {k}?", "What about a young {k}?"),
    ),
    Relation(
        "opposite",
        _pairs("hot=cold; big=small; old=young; fast=slow; good=bad; high=low; long=short; light=dark; day=night; up=down; left=right;"
               "open=closed; full=empty; happy=sad; hard=soft; rich=poor; strong=weak; thick=thin; wet=dry; clean=dirty; early=late;"
               "near=far; true=false; first=last; loud=quiet; heavy=light; wide=narrow; begin=end; win=lose; buy=sell"),
        "The opposite of {k} is {v}.", "the opposite of {k}",
        ("What is the opposite of {k}?", "What's the opposite of {k}?", "Name the opposite of {k}.", "Tell me the opposite of {k}.",
         "Which word is the opposite of {k}?", "Opposite of {k}?", "Do you know the opposite of {k}?", "The opposite of {k} is which word?"),
        ("What word is the opposite of {k}?", "Give me the opposite of {k}.", "Can you tell me the opposite of {k}?"),
        ("And of {k}?", "What about {k}?", "And the opposite of {k}?"),
    ),
    Relation(
        "french",
        _pairs("cat=chat; dog=chien; house=maison; water=eau; bread=pain; milk=lait; red=rouge; blue=bleu; green=vert; white=blanc;"
               "black=noir; day=jour; night=nuit; book=livre; sun=soleil; moon=lune; tree=arbre; friend=ami; good=bon; yes=oui; no=non"),
        "The French word for {k} is {v}.", "the French word for {k}",
        ("What is the French word for {k}?", "How do you say {k} in French?", "What is {k} in French?", "Say {k} in French.",
         "What's the French word for {k}?", "Translate {k} into French.", "Tell me the French word for {k}.", "Which French word means {k}?"),
        ("How does one say {k} in French?", "Give me the French word for {k}.", "What word do the French have for {k}?"),
        ("And {k}?", "And for {k}?", "What about {k}?"),
    ),
    Relation(
        "chinese",
        _pairs("cat=猫; dog=狗; water=水; fire=火; mountain=山; tree=木; sun=日; moon=月; big=大; small=小; good=好; red=红; blue=蓝;"
               "white=白; black=黑; person=人"),
        "The Chinese word for {k} is {v}.", "the Chinese word for {k}",
        ("What is the Chinese word for {k}?", "How do you say {k} in Chinese?", "What is {k} in Chinese?", "Say {k} in Chinese.",
         "What's the Chinese word for {k}?", "Translate {k} into Chinese.", "Tell me the Chinese word for {k}.", "Which Chinese word means {k}?"),
        ("How does one say {k} in Chinese?", "Give me the Chinese word for {k}.", "What word do the Chinese have for {k}?"),
        ("And {k}?", "And for {k}?", "What about {k}?"),
    ),
    Relation(
        "symbol",
        _pairs("gold=Au; silver=Ag; iron=Fe; copper=Cu; oxygen=O; hydrogen=H; carbon=C; sodium=Na; lead=Pb; tin=Sn; helium=He; zinc=Zn"),
        "The symbol of {k} is {v}.", "the symbol of {k}",
        ("What is the symbol of {k}?", "What is the chemical symbol of {k}?", "Which symbol does {k} have?", "Name the symbol of {k}.",
         "What's the symbol of {k}?", "Tell me the symbol of {k}.", "Symbol of {k}?", "What symbol does {k} have?"),
        ("Give me the symbol of {k}.", "Do you know the symbol of {k}?", "Which is the chemical symbol of {k}?"),
        ("And of {k}?", "What about {k}?", "And the symbol of {k}?"),
    ),
    Relation(
        "writer",
        _pairs("Hamlet=Shakespeare; Faust=Goethe; Emma=Austen; Ulysses=Joyce; Dracula=Stoker; Candide=Voltaire; Don Quixote=Cervantes;"
               "War and Peace=Tolstoy; The Odyssey=Homer; Oliver Twist=Dickens; Moby Dick=Melville; The Idiot=Dostoevsky"),
        "{v} wrote {k}.", "the writer of {k}",
        ("Who wrote {k}?", "Who is the writer of {k}?", "Who is the author of {k}?", "Name the author of {k}.", "Which writer wrote {k}?",
         "Who was the author of {k}?", "Tell me who wrote {k}.", "By whom is {k}?"),
        ("Do you know who wrote {k}?", "Tell me the author of {k}.", "Which author wrote {k}?"),
        ("And {k}?", "What about {k}?", "And who wrote {k}?"),
    ),
    Relation(
        "count",
        _pairs("days in a week=seven; months in a year=twelve; hours in a day=twenty-four; minutes in an hour=sixty; legs on a dog=four;"
               "legs on a spider=eight; legs on an ant=six; sides on a triangle=three; sides on a square=four; wheels on a car=four;"
               "wheels on a bicycle=two; fingers on a hand=five; planets around the sun=eight; letters in the alphabet=twenty-six;"
               "legs on a bird=two; seasons in a year=four; continents on Earth=seven; arms on an octopus=eight"),
        "There are {v} {k}.", "the number of {k}",
        ("How many {k} are there?", "How many {k}?", "Tell me how many {k} there are.", "What is the number of {k}?",
         "Do you know how many {k} there are?", "Count the {k}.", "How many are the {k}?", "There are how many {k}?"),
        ("Can you tell me how many {k} there are?", "Tell me the number of {k}.", "Say how many {k} there are."),
    ),
    Relation(
        "next day",
        _pairs("Monday=Tuesday; Tuesday=Wednesday; Wednesday=Thursday; Thursday=Friday; Friday=Saturday; Saturday=Sunday; Sunday=Monday"),
        "The day after {k} is {v}.", "the day after {k}",
        ("Which day comes after {k}?", "What day is after {k}?", "What is the day after {k}?", "Which day follows {k}?",
         "Name the day after {k}.", "What comes after {k}?", "Tell me the day after {k}.", "After {k} comes which day?"),
        ("What day comes after {k}?", "Which is the day after {k}?", "Tell me which day follows {k}."),
        ("And after {k}?", "What about {k}?", "And {k}?"),
    ),
    Relation(
        "next month",
        _pairs("January=February; February=March; March=April; April=May; May=June; June=July; July=August; August=September;"
               "September=October; October=November; November=December; December=January"),
        "The month after {k} is {v}.", "the month after {k}",
        ("Which month comes after {k}?", "What month is after {k}?", "What is the month after {k}?", "Which month follows {k}?",
         "Name the month after {k}.", "What comes after {k}?", "Tell me the month after {k}.", "After {k} comes which month?"),
        ("What month comes after {k}?", "Which is the month after {k}?", "Tell me which month follows {k}."),
        ("And after {k}?", "What about {k}?", "And {k}?"),
    ),
    Relation(
        "most",
        _pairs("largest planet=Jupiter; smallest planet=Mercury; largest ocean=the Pacific; longest river=the Nile; highest mountain=Everest;"
               "largest animal=the blue whale; fastest animal=the falcon; tallest animal=the giraffe; largest country=Russia;"
               "hottest planet=Venus; largest desert=the Antarctic; nearest star=the sun; hardest stone=diamond; lightest gas=hydrogen"),
        "The {k} is {v}.", "the {k}",
        ("What is the {k}?", "Which is the {k}?", "Name the {k}.", "What's the {k}?", "Tell me the {k}.", "Do you know the {k}?",
         "What is the name of the {k}?", "Which one is the {k}?"),
        ("Can you name the {k}?", "Give me the name of the {k}.", "Tell me what the {k} is."),
        ("And the {k}?", "What about the {k}?", "And what is the {k}?"),
    ),
    Relation(
        "capitale",
        _pairs("de la France=Paris; de l'Italie=Rome; de l'Espagne=Madrid; du Portugal=Lisbonne; du Japon=Tokyo; de la Chine=Pékin;"
               "de la Russie=Moscou; du Canada=Ottawa; de l'Égypte=Le Caire; de la Suède=Stockholm; de l'Allemagne=Berlin; du Maroc=Rabat"),
        "La capitale {k} est {v}.", "la capitale {k}",
        ("Quelle est la capitale {k} ?", "Quelle ville est la capitale {k} ?", "Donne-moi la capitale {k}.", "Dis-moi la capitale {k}.",
         "La capitale {k} ?", "Tu connais la capitale {k} ?", "Nomme la capitale {k}."),
        ("Peux-tu me dire la capitale {k} ?", "Quelle ville est capitale {k} ?"),
        ("Et {k} ?", "Et la capitale {k} ?"), "fr",
    ),
    Relation(
        "couleur",
        _pairs("le ciel=bleu; le lait=blanc; le soleil=jaune; le charbon=noir; le citron=jaune; le sang=rouge; le chocolat=brun; le sel=blanc"),
        "{k} est {v}.", "la couleur : {k}",
        ("De quelle couleur est {k} ?", "Quelle couleur a {k} ?", "{k}, quelle couleur ?", "Dis-moi de quelle couleur est {k}.",
         "Tu connais la couleur ? {k} ?"),
        ("Quelle est la couleur ? {k} ?", "{k} est de quelle couleur ?"),
        ("Et {k} ?",), "fr",
    ),
    Relation(
        "首都",
        _pairs("法国=巴黎; 中国=北京; 日本=东京; 英国=伦敦; 德国=柏林; 俄国=莫斯科; 韩国=首尔; 泰国=曼谷"),
        "{k}的首都是{v}。", "{k}的首都",
        ("{k}的首都是哪里？", "{k}的首都是什么？", "哪里是{k}的首都？", "请说{k}的首都。", "{k}首都？", "你知道{k}的首都吗？"),
        ("请问{k}的首都是哪里？", "{k}的首都在哪里？"),
        ("{k}呢？",), "zh",
    ),
    Relation(
        "颜色",
        _pairs("天空=蓝; 雪=白; 血=红; 草=绿; 太阳=黄; 夜=黑; 海=蓝; 牛奶=白"),
        "{k}是{v}色的。", "{k}的颜色",
        ("{k}是什么颜色？", "{k}什么颜色？", "请说{k}的颜色。", "{k}的颜色是什么？", "你知道{k}的颜色吗？"),
        ("请问{k}是什么颜色？", "{k}有什么颜色？"),
        ("{k}呢？",), "zh",
    ),
)

FACTS = tuple(Fact(relation, key) for relation in RELATIONS for key in relation.rows)
ENGLISH = tuple(fact for fact in FACTS if fact.relation.language == "en")
BY_NAME = {relation.name: relation for relation in RELATIONS}
