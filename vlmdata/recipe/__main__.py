"""Prints the recipe's JSON Schema: python -m vlmdata.recipe > schemas/recipe.schema.json"""

import json
import sys

from vlmdata.recipe import Recipe

json.dump(Recipe.model_json_schema(), sys.stdout, indent=1)
