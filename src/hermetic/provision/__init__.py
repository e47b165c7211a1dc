"""Starting material for an installation: private CAs, certificates, keys, configurations, policies (`hermetic init`).

    authority.py    a private CA: makes itself, signs requests
    names.py        which certificate each role gets: subject, SPIFFE name, CA, life
    folder.py       files with the modes that keys need; nothing is ever overwritten
    layout.py       the folders of an installation, file by file
    templates/      the configurations and policies, as people read them

Not here: enrolling TPMs (attestation/enrolment.py) and the serving key, which no file ever holds
(server/serving_key.py).
"""
