"""The documentation of the options that modules share (`module_utils/alembic_recovery/arguments.py`)."""

from __future__ import annotations


class ModuleDocFragment:
    """`stack` for all modules that start something; `stack.database`, `stack.application`, `stack.services`."""

    DOCUMENTATION = r"""
options:
  run_id:
    description: The name of the run, for the names of one-off containers.
    type: str
    default: by-hand
  run_directory:
    description: The directory of the run on the target, where it signs in while it works. Nothing is signed before
      the lock has made it.
    type: path
  docker_cli:
    description: The path of the C(docker) command, if it is neither in PATH nor in a usual place.
    type: path
requirements:
  - Python 3.8 or later on the target, and Docker where the stack has containers.
"""

    DATABASE = r"""
options:
  database:
    description: Where the database lives, and how it is asked. The same words as C(recovery_stack.database).
    type: dict
    required: true
    suboptions:
      runtime:
        description:
          - V(docker) asks with C(psql) in the container, without a password.
          - V(host) asks with psycopg 3, or with C(psql) where the target's Python does not have it.
        type: str
        choices: [docker, host]
        required: true
      container:
        description: The name of the container.
        type: str
      compose_project:
        description: The Compose project, to find the container by its labels.
        type: str
      compose_service:
        description: The Compose service, to find the container by its labels.
        type: str
      name:
        description: The name of the database.
        type: str
        required: true
        aliases: [login_db]
      user:
        description: The role to connect as. It must see the tables as the application does, and may read them.
        type: str
        required: true
        aliases: [login_user]
      password:
        description: Its password, from Ansible Vault, where one is asked for.
        type: str
        aliases: [login_password]
      host:
        description: The host name of the server.
        type: str
        aliases: [login_host]
      port:
        description: The port of the server.
        type: int
        aliases: [login_port]
      unix_socket:
        description: The directory of the server's Unix socket.
        type: path
        aliases: [login_unix_socket]
      bin_dir:
        description: Where C(pg_dump) and C(psql) of the server's version are, with O(database.runtime=host).
        type: path
      maintenance_db:
        description: The database to be connected to while the application's own is made, closed, renamed or dropped.
        type: str
        default: postgres
      admin_user:
        description: The role that makes, closes, renames and drops databases; O(database.user) if it is not given.
        type: str
      admin_password:
        description: Its password, from Ansible Vault, where one is asked for.
        type: str
"""

    APPLICATION = r"""
options:
  application:
    description: Where the application's own Python and Alembic are. The same words as C(recovery_stack.app).
    type: dict
    required: true
    suboptions:
      runtime:
        description: V(docker) is the application's container, running or not; V(host) is a process on the target.
        type: str
        choices: [docker, host]
        required: true
      container:
        description: The name of the container.
        type: str
      compose_project:
        description: The Compose project, to find the container by its labels.
        type: str
      compose_service:
        description: The Compose service, to find the container by its labels.
        type: str
      workdir:
        description: The directory from which C(alembic) is run. In a container, the image's own if it is not given.
        type: path
      python:
        description: The application's interpreter.
        type: str
        default: python3
      alembic_config:
        description: The ini file, or C(pyproject.toml), seen from O(application.workdir).
        type: str
        default: alembic.ini
      alembic_section:
        description: The section of the ini file.
        type: str
        default: alembic
      alembic_options:
        description:
          - Options of that section which the application's own command sets, C(sqlalchemy.url) for example.
          - Their values stand as they are, without doubled percent signs; they are in no command line and no log.
        type: dict
      script_location:
        description:
          - The directory with C(env.py), seen from O(application.workdir), or C(package:directory), where the
            application's own command sets it. No ini file is needed then.
        type: str
      x_arguments:
        description: The C(-x) arguments of the command C(alembic), each as C(name=value).
        type: list
        elements: str
      heads:
        description:
          - The heads of the code that are meant to be, where it is meant to have several, as revision ids, as branch
            labels, or V(heads) for all. The database is brought to all of them.
          - A head that is not among them is one that nobody declared (V(MULTIPLE_HEADS)).
        type: list
        elements: str
      prepare:
        description:
          - What C(env.py) needs to have been made before it, as C(module:name), where the application has a command
            of its own (C(flask db)). An application with C(app_context) is entered, anything else is called.
        type: str
      system_user:
        description: The operating system's user that the application runs as, if it is not who runs the module.
        type: str
      environment:
        description: Variables for the application, on top of those that it has where it runs. They are in no command
          line and no log.
        type: dict
      environment_file:
        description: A file on the target with C(NAME=value) lines, with O(application.runtime=host).
        type: path
      redirect:
        description: Another database of the same server that its migrations are to work on instead of their own.
        type: str
      network:
        description: The only Docker network of its one-off containers, instead of those of O(application.container);
          they then see the volumes read-only.
        type: str
      image:
        description: An image on the target whose code is asked instead of that of O(application.container), in its
          place and with its configuration. It is never pulled.
        type: str
"""

    SERVICES = r"""
options:
  services:
    description: The services that depend on the database, in the order of restarting. As C(recovery_stack.services).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What to call it.
        type: str
        required: true
      runtime:
        description: V(docker) is a container, V(host) a unit of a service manager on the target.
        type: str
        choices: [docker, host]
        required: true
      container:
        description: The name of the container.
        type: str
      compose_project:
        description: The Compose project, to find the container by its labels.
        type: str
      compose_service:
        description: The Compose service, to find the container by its labels.
        type: str
      manager:
        description: The service manager, with C(runtime=host).
        type: str
        choices: [supervisor, systemd]
      manager_config:
        description: The configuration file that C(supervisorctl) is to use.
        type: path
      unit:
        description: The manager's name for the service; O(services[].name) if it is not given.
        type: str
      log_files:
        description: Its log files, with C(manager=supervisor); what a restart adds to them is read.
        type: list
        elements: path
        default: []
      stop_timeout:
        description: Seconds that the service gets to end by itself.
        type: int
        default: 30
"""
