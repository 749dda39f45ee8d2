"""The words that are printed on signs: common English words, and numbers of one to four digits."""

from __future__ import annotations

import zlib

import numpy as np

_LIST = """
able about above across action address after again against agree airport alarm album alone along always amber angle
animal answer apart april arch area arrow artist aside august autumn avenue award away back baker balance bank bar
basket bath battery beach bean bear beauty bed behind bell below bench best better beyond bike bill birth biscuit
bitter black blanket block blue board boat body bone book border bottle bottom bowl box brave bread break bridge
bright bring broad brown brush bucket budget build bundle burger busy butter button cabin cable cafe cake camera
camp canal candle canvas captain car card careful cargo carpet carry castle catch caution cellar center chair
chalk chance change cheap check cheese cherry chief choice church cinema circle city clean clear climb clinic
clock close cloud coach coast coffee cold college common copper corner cotton council count country course cream
credit cross crown cycle daily dance danger dark date dawn deep delay deliver dentist desert design detour diesel
dinner direct doctor dog dollar door double down dozen dragon dream drink drive drum dry dust duty eagle early earth
east easy echo edge eight electric elephant empty energy engine enjoy enter equal evening event every exact exit
express extra fabric factory fair family farm fast father ferry field fifty film final fine finger fire first fish
five flag flight floor flour flower fly focus follow forest fork forward four fox free fresh friday friend front
fruit fuel full future gallery garage garden gas gate gentle giant gift glass global gold golf good grand grape
grass gravel great green grey ground group guard guest guide guitar hall hammer happy harbor hard harvest hazard
heart heavy help hidden high hill hold hollow home honey hope horse hospital hotel hour house hundred hurry ice
idea import inch indoor info inside island ivory jacket january jazz jewel join journey juice july jump june
jungle just keen keep kettle kick kind king kitchen knife ladder lake lamp large laser late laundry lawn leaf
learn leather left lemon level library light lily limit lion liquid listen little local lock long lost loud lower
lucky lunch machine magic main manager maple march margin market master match meadow meal medal meeting melon metal
middle milk mill mind minute mirror model modern monday money month moon morning mother motor mountain mouse museum
music narrow nature near needle never new next night nine noble noise noon north notice number oak ocean october
offer office oil old olive one onion open orange orbit order outdoor oven over oxygen packet paint pair palace
paper parade parcel park party pass path patient pay peace peach pencil pepper perfect phone photo piano picnic
pilot pine pizza plan planet plant plate play pocket point police pool port post potato pound powder press price
prince print private prize public pull pump purple push puzzle quality quarter queen quick quiet quiz rabbit radio
railway rain ranch rapid ready record red relay rent repair rescue rest ribbon rice right ring rise river road
robin rock roof room rose round route royal rubber rural safe sail salad sale salmon salt sand saturday sauce
school science sea season seat second secret select service seven shade sharp shelf shell ship shirt shoe shop
short show signal silent silver simple single sister six size skate sky slow small smart smoke smooth snack snow
soap social soft solar song soup south space spare special speed spice spoon sport spring square stable staff
stage stairs stamp star start state station steel stone stop store storm story street strong student studio sugar
summer sun sunday super supply swan sweet swim switch table tailor target taxi tea team temple ten tennis test
theater thick think third thursday ticket tiger timber tire toast today toilet token tomato tool top tower town
track trade traffic trail train travel treat trend trial truck trust tulip tunnel turn twelve twin two uncle under
union unit up upper urban urgent useful valley value van vanilla velvet video view village vine violet visit
vital voice vote wagon wait walk wall warm wash watch water wave weather week weight west wheat wheel white wide
wild wind window wine winter wise wood wool work world wrong yacht yard year yellow yes young zebra zero zone
"""

WORDS: tuple[str, ...] = tuple(_LIST.split())
"""Lower case, in alphabetical order."""


def held_out(text: str) -> bool:
    """Whether a word (in any case) or number is one of the eighth that no training sees.

    Decided by the CRC-32 of its lower case, so a number is as fixed as a word.
    """
    return zlib.crc32(text.lower().encode()) % 8 == 0


def vocabulary(which: str) -> tuple[str, ...]:
    """The words of ``seen``, ``held_out`` or ``all``, without the numbers.

    Raises:
        ValueError: `which` is none of the three.
    """
    _check(which)
    return tuple(word for word in WORDS if which == "all" or held_out(word) == (which == "held_out"))


def draw_text(rng: np.random.Generator, which: str = "all") -> str:
    """One text to print: a word in lower case, capitalised or in upper case, or (one in six) a number.

    Raises:
        ValueError: `which` is none of ``seen``, ``held_out`` and ``all``.
    """
    _check(which)
    number = rng.random() < 1 / 6
    while True:
        if number:
            text = str(int(rng.integers(0, 10 ** int(rng.integers(1, 5)))))
        else:
            text = WORDS[int(rng.integers(len(WORDS)))]
        if which == "all" or held_out(text) == (which == "held_out"):
            break
    case = rng.random()
    return text.upper() if case < 0.4 else text.capitalize() if case < 0.7 else text


def _check(which: str) -> None:
    if which not in ("seen", "held_out", "all"):
        raise ValueError(f"words must be 'seen', 'held_out' or 'all' but is {which!r}")
