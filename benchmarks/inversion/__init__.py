"""The attacker's view: what each actor has, given to attackers who try to find the texts behind it (docs/inversion.md).

texts    who knows which texts          served  the real client and server, and what they leave
seen     their bytes → features         private, scores   released rows, leaked scores
matching, words   the attackers         chance, quality   how sure; what a search still finds
measure  all of it → figures            page    figures → docs/inversion.md
"""
