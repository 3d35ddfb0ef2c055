import model  # noqa: F401  # first of all: it keeps OpenVINO and NNCF from reporting
