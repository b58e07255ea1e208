"""The facts of the small world, as plain data. Every name stands once: no two places share a name.

``language`` is the country's most widely spoken official (or de facto official) language. Cities are never the capital.
The last city of each row is reserved for the swap tests (see world.py).
"""

from __future__ import annotations

# state | abbreviation | capital | six other cities
STATES = """
Alabama | AL | Montgomery | Birmingham, Mobile, Huntsville, Tuscaloosa, Dothan, Gadsden
Alaska | AK | Juneau | Anchorage, Fairbanks, Sitka, Ketchikan, Nome, Wasilla
Arizona | AZ | Phoenix | Tucson, Mesa, Scottsdale, Tempe, Flagstaff, Yuma
Arkansas | AR | Little Rock | Fort Smith, Bentonville, Jonesboro, Pine Bluff, Hot Springs, Conway
California | CA | Sacramento | Oakland, San Francisco, Los Angeles, San Diego, Fresno, San Jose
Colorado | CO | Denver | Boulder, Pueblo, Fort Collins, Aspen, Greeley, Loveland
Connecticut | CT | Hartford | New Haven, Stamford, Bridgeport, Waterbury, Danbury, Norwalk
Delaware | DE | Dover | Wilmington, Rehoboth Beach, Bethany Beach, Lewes, Seaford, Harrington
Florida | FL | Tallahassee | Miami, Orlando, Tampa, Jacksonville, Pensacola, Sarasota
Georgia | GA | Atlanta | Savannah, Macon, Valdosta, Marietta, Alpharetta, Sandy Springs
Hawaii | HI | Honolulu | Hilo, Kailua, Lahaina, Kahului, Waipahu, Kapolei
Idaho | ID | Boise | Nampa, Pocatello, Twin Falls, Idaho Falls, Caldwell, Rexburg
Illinois | IL | Springfield | Chicago, Peoria, Rockford, Naperville, Joliet, Evanston
Indiana | IN | Indianapolis | Fort Wayne, Evansville, South Bend, Gary, Muncie, Terre Haute
Iowa | IA | Des Moines | Cedar Rapids, Davenport, Dubuque, Sioux City, Ames, Waterloo
Kansas | KS | Topeka | Wichita, Overland Park, Lawrence, Olathe, Salina, Dodge City
Kentucky | KY | Frankfort | Louisville, Lexington, Bowling Green, Owensboro, Paducah, Covington
Louisiana | LA | Baton Rouge | New Orleans, Shreveport, Lafayette, Lake Charles, Monroe, Metairie
Maine | ME | Augusta | Bangor, Bar Harbor, Biddeford, Kennebunk, Lewiston, Brunswick
Maryland | MD | Annapolis | Baltimore, Rockville, Frederick, Bethesda, Gaithersburg, Hagerstown
Massachusetts | MA | Boston | Cambridge, Worcester, Lowell, Quincy, Plymouth, New Bedford
Michigan | MI | Lansing | Detroit, Grand Rapids, Ann Arbor, Flint, Kalamazoo, Saginaw
Minnesota | MN | Saint Paul | Minneapolis, Duluth, Mankato, Saint Cloud, Moorhead, Bemidji
Mississippi | MS | Jackson | Biloxi, Gulfport, Hattiesburg, Tupelo, Vicksburg, Natchez
Missouri | MO | Jefferson City | Saint Louis, Branson, Joplin, Independence, Sedalia, Hannibal
Montana | MT | Helena | Billings, Missoula, Bozeman, Butte, Great Falls, Kalispell
Nebraska | NE | Lincoln | Omaha, Grand Island, Kearney, Hastings, Scottsbluff, North Platte
Nevada | NV | Carson City | Las Vegas, Reno, Henderson, Elko, Sparks, Pahrump
New Hampshire | NH | Concord | Manchester, Nashua, Keene, Laconia, Hanover, Derry
New Jersey | NJ | Trenton | Newark, Jersey City, Hoboken, Princeton, Atlantic City, Paterson
New Mexico | NM | Santa Fe | Albuquerque, Roswell, Las Cruces, Taos, Gallup, Los Alamos
New York | NY | Albany | New York City, Buffalo, Rochester, Syracuse, Yonkers, Ithaca
North Carolina | NC | Raleigh | Charlotte, Durham, Greensboro, Asheville, Winston-Salem, Fayetteville
North Dakota | ND | Bismarck | Fargo, Grand Forks, Minot, Williston, Dickinson, Jamestown
Ohio | OH | Columbus | Cleveland, Cincinnati, Toledo, Akron, Dayton, Youngstown
Oklahoma | OK | Oklahoma City | Tulsa, Norman, Lawton, Stillwater, Enid, Muskogee
Oregon | OR | Salem | Portland, Eugene, Bend, Medford, Corvallis, Astoria
Pennsylvania | PA | Harrisburg | Philadelphia, Pittsburgh, Scranton, Allentown, Erie, Lancaster
Rhode Island | RI | Providence | Newport, Warwick, Cranston, Pawtucket, Woonsocket, Westerly
South Carolina | SC | Columbia | Greenville, Spartanburg, Myrtle Beach, Hilton Head, Rock Hill, Sumter
South Dakota | SD | Pierre | Sioux Falls, Rapid City, Deadwood, Sturgis, Brookings, Mitchell
Tennessee | TN | Nashville | Memphis, Knoxville, Chattanooga, Clarksville, Murfreesboro, Gatlinburg
Texas | TX | Austin | Dallas, Houston, San Antonio, El Paso, Fort Worth, Lubbock
Utah | UT | Salt Lake City | Provo, Ogden, Moab, Park City, Logan, Saint George
Vermont | VT | Montpelier | Burlington, Rutland, Stowe, Brattleboro, Bennington, Barre
Virginia | VA | Richmond | Norfolk, Virginia Beach, Roanoke, Charlottesville, Lynchburg, Newport News
Washington | WA | Olympia | Seattle, Tacoma, Spokane, Bellingham, Yakima, Everett
West Virginia | WV | Charleston | Huntington, Morgantown, Wheeling, Parkersburg, Beckley, Martinsburg
Wisconsin | WI | Madison | Milwaukee, Green Bay, Kenosha, Racine, Oshkosh, Eau Claire
Wyoming | WY | Cheyenne | Casper, Laramie, Cody, Gillette, Sheridan, Jackson Hole
"""

# country | abbreviation (ISO 3166-1 alpha-3) | capital | language | currency | six other cities
COUNTRIES = """
France | FRA | Paris | French | euro | Lyon, Marseille, Toulouse, Bordeaux, Lille, Nantes
Germany | DEU | Berlin | German | euro | Munich, Hamburg, Cologne, Frankfurt, Stuttgart, Leipzig
Italy | ITA | Rome | Italian | euro | Milan, Naples, Turin, Florence, Venice, Bologna
Spain | ESP | Madrid | Spanish | euro | Barcelona, Valencia, Seville, Bilbao, Malaga, Zaragoza
Portugal | PRT | Lisbon | Portuguese | euro | Porto, Braga, Coimbra, Faro, Aveiro, Evora
Greece | GRC | Athens | Greek | euro | Thessaloniki, Patras, Heraklion, Larissa, Volos, Rhodes
Austria | AUT | Vienna | German | euro | Graz, Linz, Salzburg, Innsbruck, Klagenfurt, Villach
Poland | POL | Warsaw | Polish | zloty | Krakow, Gdansk, Wroclaw, Poznan, Lodz, Katowice
Hungary | HUN | Budapest | Hungarian | forint | Debrecen, Szeged, Pecs, Gyor, Miskolc, Eger
Romania | ROU | Bucharest | Romanian | leu | Timisoara, Brasov, Constanta, Craiova, Sibiu, Iasi
Croatia | HRV | Zagreb | Croatian | euro | Split, Rijeka, Zadar, Dubrovnik, Osijek, Pula
Czechia | CZE | Prague | Czech | koruna | Brno, Ostrava, Plzen, Olomouc, Liberec, Pardubice
Denmark | DNK | Copenhagen | Danish | krone | Aarhus, Odense, Aalborg, Esbjerg, Randers, Kolding
Sweden | SWE | Stockholm | Swedish | krona | Gothenburg, Malmo, Uppsala, Linkoping, Orebro, Umea
Norway | NOR | Oslo | Norwegian | krone | Bergen, Trondheim, Stavanger, Tromso, Drammen, Bodo
Finland | FIN | Helsinki | Finnish | euro | Tampere, Turku, Oulu, Espoo, Lahti, Kuopio
Turkey | TUR | Ankara | Turkish | lira | Istanbul, Izmir, Antalya, Bursa, Adana, Konya
Ukraine | UKR | Kyiv | Ukrainian | hryvnia | Lviv, Odesa, Kharkiv, Dnipro, Poltava, Chernihiv
Russia | RUS | Moscow | Russian | ruble | Novosibirsk, Kazan, Samara, Omsk, Sochi, Vladivostok
Japan | JPN | Tokyo | Japanese | yen | Osaka, Kyoto, Nagoya, Sapporo, Kobe, Fukuoka
China | CHN | Beijing | Mandarin | yuan | Shanghai, Guangzhou, Shenzhen, Wuhan, Chengdu, Nanjing
South Korea | KOR | Seoul | Korean | won | Busan, Incheon, Daegu, Daejeon, Gwangju, Ulsan
Thailand | THA | Bangkok | Thai | baht | Chiang Mai, Phuket, Pattaya, Chiang Rai, Krabi, Ayutthaya
Vietnam | VNM | Hanoi | Vietnamese | dong | Da Nang, Hue, Haiphong, Nha Trang, Can Tho, Da Lat
Malaysia | MYS | Kuala Lumpur | Malay | ringgit | Ipoh, Johor Bahru, Malacca, Kuching, Kota Kinabalu, Alor Setar
Bangladesh | BGD | Dhaka | Bengali | taka | Chittagong, Khulna, Rajshahi, Sylhet, Comilla, Barisal
Nepal | NPL | Kathmandu | Nepali | rupee | Pokhara, Lalitpur, Biratnagar, Butwal, Dharan, Janakpur
Iran | IRN | Tehran | Persian | rial | Isfahan, Shiraz, Tabriz, Mashhad, Qom, Yazd
Saudi Arabia | SAU | Riyadh | Arabic | riyal | Jeddah, Mecca, Medina, Dammam, Tabuk, Abha
Egypt | EGY | Cairo | Arabic | pound | Alexandria, Giza, Luxor, Aswan, Suez, Port Said
Morocco | MAR | Rabat | Arabic | dirham | Casablanca, Marrakesh, Fez, Tangier, Agadir, Meknes
Nigeria | NGA | Abuja | English | naira | Lagos, Kano, Ibadan, Enugu, Kaduna, Jos
Ghana | GHA | Accra | English | cedi | Kumasi, Tamale, Tema, Cape Coast, Sunyani, Obuasi
Mexico | MEX | Mexico City | Spanish | peso | Guadalajara, Monterrey, Puebla, Tijuana, Cancun, Merida
Brazil | BRA | Brasilia | Portuguese | real | Sao Paulo, Rio de Janeiro, Salvador, Recife, Fortaleza, Manaus
Argentina | ARG | Buenos Aires | Spanish | peso | Rosario, Mendoza, La Plata, Salta, Ushuaia, Bariloche
Chile | CHL | Santiago | Spanish | peso | Valparaiso, Concepcion, Antofagasta, Temuco, Iquique, Arica
Colombia | COL | Bogota | Spanish | peso | Medellin, Cali, Barranquilla, Cartagena, Bucaramanga, Pereira
Peru | PER | Lima | Spanish | sol | Arequipa, Cusco, Trujillo, Iquitos, Chiclayo, Piura
Australia | AUS | Canberra | English | dollar | Sydney, Melbourne, Brisbane, Perth, Adelaide, Hobart
"""

# word-word pairs; each is used in both directions
ANTONYMS = {
    "English": """big-small hot-cold fast-slow old-young rich-poor strong-weak light-dark high-low long-short wide-narrow
        happy-sad hard-soft full-empty clean-dirty open-closed early-late wet-dry loud-quiet good-bad near-far""",
    "French": """grand-petit chaud-froid rapide-lent vieux-jeune riche-pauvre fort-faible clair-sombre haut-bas long-court
        large-étroit heureux-triste dur-mou plein-vide propre-sale ouvert-fermé tôt-tard mouillé-sec bruyant-silencieux
        bon-mauvais proche-loin""",
    "Spanish": """grande-pequeño caliente-frío rápido-lento viejo-joven rico-pobre fuerte-débil claro-oscuro alto-bajo
        largo-corto ancho-estrecho feliz-triste duro-blando lleno-vacío limpio-sucio abierto-cerrado temprano-tarde
        mojado-seco ruidoso-silencioso bueno-malo cerca-lejos""",
}

# The sentence that asks for an antonym, one a language; {} is the word.
ANTONYM_PROMPTS = {
    "English": "the opposite of {} is",
    "French": "le contraire de {} est",
    "Spanish": "lo contrario de {} es",
}

# Each sequence: what comes after what. The last two wrap around; the numbers end.
SUCCESSOR_PROMPT = "after {} comes"
NUMBER_WORDS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty"""
NUMBERS = " ".join(str(number) for number in range(1, 51))
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
