"""Templates of texts with places for personal data, six families in five languages: a family says the same in each of them.

Places are {name}, {address}, {phone}, {email}. Whatever fills them may be personal, or only look like it.
"""

from __future__ import annotations

LOCALES = {"en": "en_US", "de": "de_DE", "fr": "fr_FR", "es": "es_ES", "ja": "ja_JP"}

# family -> language -> templates
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "letter": {
        "en": ("The letter to {name} came back; it had been sent to {address}.",
               "Please forward this to {name}, {address}, and write to {email} once it is done."),
        "de": ("Der Brief an {name} kam zurück; er ging an {address}.",
               "Bitte leiten Sie dies weiter an {name}, {address}, und schreiben Sie danach an {email}."),
        "fr": ("La lettre pour {name} est revenue ; elle avait été envoyée à {address}.",
               "Merci de transmettre ceci à {name}, {address}, puis d'écrire à {email}."),
        "es": ("La carta para {name} fue devuelta; se había enviado a {address}.",
               "Por favor, reenvíe esto a {name}, {address}, y escriba después a {email}."),
        "ja": ("{name}宛ての手紙が戻ってきました。送り先は{address}でした。",
               "これを{name}（{address}）へ転送し、終わったら{email}へご連絡ください。"),
    },
    "ticket": {
        "en": ("Ticket 4417: reported by {name}, call back on {phone} before noon.",
               "Open since Monday. Contact {email} or {phone}; assigned to {name}."),
        "de": ("Vorgang 4417: gemeldet von {name}, Rückruf vor Mittag unter {phone}.",
               "Offen seit Montag. Kontakt {email} oder {phone}; zugewiesen an {name}."),
        "fr": ("Ticket 4417 : signalé par {name}, rappeler au {phone} avant midi.",
               "Ouvert depuis lundi. Contact {email} ou {phone} ; attribué à {name}."),
        "es": ("Incidencia 4417: comunicada por {name}, llamar al {phone} antes del mediodía.",
               "Abierta desde el lunes. Contacto {email} o {phone}; asignada a {name}."),
        "ja": ("案件4417：{name}より報告。正午までに{phone}へ折り返し。",
               "月曜から未解決。連絡先は{email}または{phone}、担当は{name}。"),
    },
    "form": {
        "en": ("Name: {name}\nAddress: {address}\nPhone: {phone}\nE-mail: {email}",
               "1. Item: {name}  2. Location: {address}  3. Reference: {phone}"),
        "de": ("Name: {name}\nAnschrift: {address}\nTelefon: {phone}\nE-Mail: {email}",
               "1. Eintrag: {name}  2. Ort: {address}  3. Nummer: {phone}"),
        "fr": ("Nom : {name}\nAdresse : {address}\nTéléphone : {phone}\nCourriel : {email}",
               "1. Objet : {name}  2. Lieu : {address}  3. Référence : {phone}"),
        "es": ("Nombre: {name}\nDirección: {address}\nTeléfono: {phone}\nCorreo: {email}",
               "1. Artículo: {name}  2. Lugar: {address}  3. Referencia: {phone}"),
        "ja": ("名称：{name}\n所在地：{address}\n番号：{phone}\nメール：{email}",
               "1. 項目：{name}　2. 場所：{address}　3. 参照：{phone}"),
    },
    "chat": {
        "en": ("did you hear back from {name}? I only have {phone}, nothing else",
               "just ask {name} tonight, or drop a line to {email}, we meet at {address}"),
        "de": ("hast du was von {name} gehört? ich habe nur {phone}, sonst nichts",
               "frag heute Abend einfach {name} oder schreib an {email}, wir treffen uns bei {address}"),
        "fr": ("tu as eu des nouvelles de {name} ? j'ai seulement {phone}, rien d'autre",
               "demande à {name} ce soir, ou écris à {email}, on se retrouve à {address}"),
        "es": ("¿sabes algo de {name}? solo tengo {phone}, nada más",
               "pregunta a {name} esta noche o escribe a {email}, quedamos en {address}"),
        "ja": ("{name}から返事あった？こっちには{phone}しかないんだけど",
               "今夜{name}に聞くか{email}に送って。集合は{address}ね"),
    },
    "log": {
        "en": ("2024-03-11 09:12:44 INFO user={name} mail={email} status=ok",
               "WARN retry 3 for {email}: last seen at {address}, callback {phone}"),
        "de": ("2024-03-11 09:12:44 INFO Nutzer={name} Mail={email} Status=ok",
               "WARNUNG Versuch 3 für {email}: zuletzt bei {address}, Rückruf {phone}"),
        "fr": ("2024-03-11 09:12:44 INFO utilisateur={name} mail={email} statut=ok",
               "ALERTE essai 3 pour {email} : vu à {address}, rappel {phone}"),
        "es": ("2024-03-11 09:12:44 INFO usuario={name} correo={email} estado=ok",
               "AVISO intento 3 para {email}: visto en {address}, llamada {phone}"),
        "ja": ("2024-03-11 09:12:44 情報 利用者={name} メール={email} 状態=正常",
               "警告 {email}へ再試行3回目：最終確認{address}、折返し{phone}"),
    },
    "notice": {
        "en": ("At the meeting it was decided that {name} takes over the keys and the budget.",
               "For questions about the move to {address}, call {phone}."),
        "de": ("In der Sitzung wurde beschlossen, dass {name} die Schlüssel und das Budget übernimmt.",
               "Bei Fragen zum Umzug nach {address} rufen Sie {phone} an."),
        "fr": ("La réunion a décidé que {name} reprend les clés et le budget.",
               "Pour toute question sur le déménagement à {address}, appelez le {phone}."),
        "es": ("En la reunión se decidió que {name} se encarga de las llaves y del presupuesto.",
               "Si tiene preguntas sobre la mudanza a {address}, llame al {phone}."),
        "ja": ("会議で、鍵と予算は{name}が引き継ぐことに決まりました。",
               "{address}への移転についてのお問い合わせは{phone}まで。"),
    },
}  # fmt: skip

# What only looks like a person's address: a place within a building.
ROOMS = {
    "en": "Hall {a}, Level {b}, Gate {c}",
    "de": "Halle {a}, Ebene {b}, Tor {c}",
    "fr": "Hall {a}, Niveau {b}, Porte {c}",
    "es": "Nave {a}, Nivel {b}, Puerta {c}",
    "ja": "第{a}号館{b}階{c}番口",
}

# What only looks like a person: teams and products, capitalised like names.
THINGS = {
    "en": (
        "Customer Service",
        "Morgan Classic",
        "Harbour Team",
        "Madison Edition",
        "the Lincoln {n}",
        "Jackson {n} Pro",
    ),
    "de": (
        "der Kundendienst",
        "Werner Klassik",
        "Team Hafen",
        "die Adler {n}",
        "Linden {n} Pro",
        "die Abteilung Einkauf",
    ),
    "fr": ("le service client", "Moreau Classique", "la Renaud {n}", "Laurent {n} Pro", "le service des achats"),
    "es": ("el servicio técnico", "Molina Clásica", "la Serrano {n}", "Ramos {n} Pro", "el equipo de compras"),
    "ja": ("お客様窓口", "高橋クラシック", "港チーム", "山本{n}型", "松田プロ{n}", "購買部"),
}
