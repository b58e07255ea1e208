"""Do groups, names and stories say what is known to be true of the embedded world?"""
