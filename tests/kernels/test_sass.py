"""Counting instructions, on a kernel whose count is plain."""

from __future__ import annotations

from tests.kernels.sass import blocks_of, loops_with

KERNEL = """
.text.trimtab_columns:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4.64] ;
        /*0020*/                   ISETP.NE.AND P0, PT, R2, RZ, PT ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   FADD R3, R3, 1 ;
        /*0050*/                   FADD R3, R3, 2 ;
        /*0060*/                   FADD R3, R3, 3 ;
.L_x_1:
        /*0070*/                   ATOMS.POPC.INC.32 RZ, [R2+URZ] ;
        /*0080*/              @!P1 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
"""


def test_a_loop_without_what_is_branched_around() -> None:
    (loop,) = loops_with(blocks_of(KERNEL), lambda instruction: "ATOMS" in instruction)
    assert [instruction.split()[0] for instruction in loop] == [
        "LDG.E",
        "ISETP.NE.AND",
        "@P0",
        "ATOMS.POPC.INC.32",
        "@!P1",
    ]


def test_nothing_marked() -> None:
    assert loops_with(blocks_of(KERNEL), lambda instruction: "STG" in instruction) == []
