"""Hybrid Post-Training and its family (HPT, GRPO, SFT, LUFFY, SRFT, CHORD) as settings of one trainer."""
