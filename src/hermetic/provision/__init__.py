"""Starting material for an installation: private CAs, certificates, keys, configurations, policies (`hermetic init`).

    authority.py    a private CA: makes itself, signs requests
    names.py        which certificate each role gets: subject, SPIFFE name, CA, life
    folder.py       files with the modes that keys need; nothing is ever overwritten
    plan.py         what an installation is called, where it listens, how its host attests
    layout.py       its folders, file by file          configurations.py, templates/   its configurations and policies
    demo.py         what a demo does without on this host
    host.py         what a host offers                 installation.py   what is wrong with an installation on it

Not here: enrolling TPMs (attestation/enrolment.py) and the serving key, which no file ever holds
(server/serving_key.py).
"""
