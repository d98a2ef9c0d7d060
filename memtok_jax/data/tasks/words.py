"""Words for tasks: two own lists of 64 words of five letters each."""

from __future__ import annotations

ADJECTIVES = tuple("""
    acute agile alert ample basic blank bleak blunt bland brave brief brisk broad brown cheap civic clean clear close crisp cruel
    dense dizzy dusty eager early empty exact faint false fresh fussy giant grand great green happy harsh heavy humid ideal inner
    jolly large legal light local loyal lucky merry minor moist noble plain proud quick quiet rapid rough royal sharp short silky
    smart
    """.split())
NOUNS = tuple("""
    apple arrow badge bagel beach berry bread brick brook brush cabin camel candy canoe chain chair chalk cloud coach coral crane
    crown daisy dance diary eagle fence fiber field flame flute forge frame fruit ghost glass globe grape guard horse hotel house
    juice knife lemon linen lunch maple medal metal mouse music night ocean olive onion opera paint panda paper pearl piano pilot
    plant
    """.split())
