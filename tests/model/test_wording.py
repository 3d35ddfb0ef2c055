"""The table of gender-neutral wording, sentence by sentence."""

from __future__ import annotations

import pytest

from model.wording import neutral

TABLE = """
A man in a red shirt is climbing a rock. -> A person in a red shirt is climbing a rock.
Two men are playing guitars. -> Two people are playing guitars.
A young boy jumps into a pool. -> A young child jumps into a pool.
An old lady sits on a bench. -> An old person sits on a bench.
A man walks his dog. -> A person walks their dog.
A woman in her kitchen is cooking. -> A person in their kitchen is cooking.
A man with his arm around her. -> A person with their arm around them.
A boy looks at her in the park. -> A child looks at them in the park.
A man watches her walk down the street. -> A person watches them walk down the street.
A dog follows her walking on the beach. -> A dog follows them walking on the beach.
A bride in her wedding dress. -> A newlywed in their wedding dress.
A woman talks on her cell phone. -> A person talks on their cell phone.
A girl looks at herself in the mirror. -> A child looks at themselves in the mirror.
A man smiles as he is holding a fish. -> A person smiles as they are holding a fish.
A man smiles while he holds his baby. -> A person smiles while they hold their baby.
A boy watches as she catches the ball. -> A child watches as they catch the ball.
She has a dog with her. -> They have a dog with them.
He tries to ride it and falls. -> They try to ride it and fall.
He lies on the grass and reads. -> They lie on the grass and read.
A dog jumps as he quickly throws it a ball. -> A dog jumps as they quickly throw it a ball.
She was there but he doesn't look. -> They were there but they don't look.
He can jump. -> They can jump.
He's riding a bike. -> They're riding a bike.
A man and a woman are walking on the beach. -> Two people are walking on the beach.
A man and woman are walking. -> Two people are walking.
A boy and a girl play in the sand. -> Two children play in the sand.
A boy and girl play. -> Two children play.
A man and a boy are fishing. -> A person and a child are fishing.
Two men and a woman sit at a table. -> Three people sit at a table.
Two boys and two girls are running. -> Four children are running.
Men and women dance. -> People dance.
A group of boys and girls. -> A group of children.
A young man and a young woman are kissing. -> Two young people are kissing.
A young man and woman are kissing. -> Two young people are kissing.
An old man and a woman. -> An old person and a person.
The man and the woman are dancing. -> The two people are dancing.
The bride and groom cut the cake. -> The two newlyweds cut the cake.
A bride and groom are dancing. -> Two newlyweds are dancing.
A man's hand is holding a woman's bag. -> A person's hand is holding a person's bag.
Two girls' bicycles. -> Two children's bicycles.
A mans hand. -> A person's hand.
A male athlete runs. -> An athlete runs.
A female tennis player hits the ball. -> A tennis player hits the ball.
Two male swimmers dive. -> Two swimmers dive.
A male jumps over a fence. -> A person jumps over a fence.
Two females in bikinis. -> Two people in bikinis.
A female wearing a hat. -> A person wearing a hat.
A girls soccer team plays. -> A soccer team plays.
A baby boy sleeps. -> A baby sleeps.
A teenage girl in a dress. -> A teenager in a dress.
A mother holds her son. -> A parent holds their child.
A father and his daughter fly a kite. -> A parent and their child fly a kite.
A fireman and a policeman. -> A firefighter and a police officer.
A cowboy in a cowboy hat rides a bull. -> A cowhand in a cowboy hat rides a bull.
The second baseman throws the ball. -> The second base player throws the ball.
A craftsman at work. -> An artisan at work.
An actress on stage. -> An actor on stage.
A waitress serves. -> A server serves.
A snowman wearing a hat. -> A snowman wearing a hat.
Two monkeys groom each other. -> Two monkeys groom each other.
A man-made lake. -> A man-made lake.
A sign for the women's restroom. -> A sign for the women's restroom.
A brown dog runs through the grass. -> A brown dog runs through the grass.
A person is walking their dog. -> A person is walking their dog.
Un homme a son chien et joue. -> Un homme a son chien et joue.
Los hombres son de España. -> Los hombres son de España.
En man i röd tröja. -> En man i röd tröja.
Man. -> Person.
Young boys running on grass. -> Young children running on grass.
A dog with another man and woman. -> A dog with two other people.
One black female plus a white male. -> One black person plus a white person.
Ein Mann geht spazieren. -> Ein Mann geht spazieren.
两个男人在踢球。 -> 两个男人在踢球。
A MAN. -> A PERSON.
a man with his dog -> a person with their dog
A man’s dog. -> A person’s dog.
"""


@pytest.mark.parametrize("row", TABLE.strip().splitlines())
def test_the_table(row: str) -> None:
    said, _, meant = row.partition(" -> ")
    assert neutral(said) == meant
    assert neutral(meant) == meant  # nothing left to change


def test_nothing_is_nothing() -> None:
    assert neutral("") == ""
    assert neutral(" 12, ... ") == " 12, ... "
