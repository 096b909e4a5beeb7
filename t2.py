from scinterp.cells import datasets
from scinterp.cells.nomenclature import bundled_genes
from scinterp.methods.baselines import LogisticHVG
from scinterp.methods.queries import *
cells = datasets.load('demo'); parts = datasets.split('demo'); train, test = cells[parts.train], cells[parts.test].copy()
names = bundled_genes().query("species == 'human'").set_index('symbol'); 
from scinterp.methods.baselines import Majority
model=Majority().fit(train)
alias = {g: names.aliases.get(g, '').split('|')[0] or g for g in test.var_names}
told = match_query([*(alias[g] for g in test.var_names), 'nobody'], 'human', model)
print(told.how.value_counts())
