"""Settings of the control plane; values come from the environment through `env`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from controlplane import env
from controlplane.retention.declared import KINDS

BASE_DIR = Path(__file__).resolve().parent.parent

# --- Security ------------------------------------------------------------------------------------
DEBUG = env.flag("INTERLOCK_DEBUG", False, "1 shows tracebacks in the browser; never in production")
SECRET_KEY = env.secret(
    "INTERLOCK_SECRET_KEY", None, "signs sessions; who knows it can log in as anyone"
)
ALLOWED_HOSTS = env.items(
    "INTERLOCK_ALLOWED_HOSTS", "127.0.0.1,localhost", "host names of the web UI"
)
CSRF_TRUSTED_ORIGINS = env.items(
    "INTERLOCK_TRUSTED_ORIGINS", "",
    "origins that may post forms where a proxy ends TLS, e.g. https://interlock.example.com",
)  # fmt: skip
SECURE_COOKIES = env.flag("INTERLOCK_SECURE_COOKIES", False, "1 sends cookies over HTTPS only")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_COOKIES
SESSION_COOKIE_HTTPONLY = True
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SECURE_COOKIES else None
X_FRAME_OPTIONS = "DENY"

# Proxies of ours in front of the web server, whose X-Forwarded-For says who the client is.
PROXIES = env.integer(
    "INTERLOCK_PROXIES", 0,
    "of yours in front of the web UI: this many last entries of X-Forwarded-For are trusted",
    "proxies",
)  # fmt: skip
# Failed logins of a name from an address until it is locked out; ten times as many of a name from
# everywhere, or from an address for any name.
AXES_FAILURE_LIMIT = env.integer(
    "INTERLOCK_LOGIN_FAILURES_MAX", 5,
    "of a name from an address before it is locked out", "failed logins", at_least=1,
)  # fmt: skip
LOGIN_FAILURES_WIDE_MAX = 10 * AXES_FAILURE_LIMIT
AXES_COOLOFF_TIME = timedelta(
    minutes=env.integer("INTERLOCK_LOGIN_LOCKED_MIN", 15, "length of a lock-out", "min", at_least=1)
)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_HANDLER = "controlplane.logins.Guard"
AXES_LOCKOUT_CALLABLE = "controlplane.logins.locked_out"
AXES_USERNAME_CALLABLE = "controlplane.logins.username_of"
AXES_CLIENT_IP_CALLABLE = "controlplane.client_address.client_address"
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
# The audit log records logins.
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]

# --- Applications --------------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "axes",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "controlplane",
    "apps.models",
    "apps.notifications",
    "apps.identity",
    "apps.rollouts",
    "apps.experiments",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "controlplane.client_address.ClientAddressMiddleware",
    "controlplane.client_address.NullMiddleware",
    "controlplane.static.StaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "controlplane.idempotency.IdempotencyMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "controlplane.urls"
WSGI_APPLICATION = "controlplane.wsgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "controlplane.health.page_context",
            ],
        },
    },
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "login"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]

DATA_UPLOAD_MAX_MEMORY_SIZE = env.integer(
    "INTERLOCK_API_BODY_BYTES_MAX", 2 * 1024**2,
    "largest JSON body of the REST API, and largest form without its files",
    "bytes", at_least=64 * 1024,
)  # fmt: skip

# --- Data ----------------------------------------------------------------------------------------
# A pool requires CONN_MAX_AGE = 0. Only web processes have a pool.
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        **env.database(
            "DATABASE_URL",
            "postgresql://interlock@127.0.0.1:5433/interlock",
            "PostgreSQL, as libpq reads it: ?sslmode=verify-full&sslrootcert=/etc/ca.pem and other "
            "parameters may follow, and there may be several hosts (host1:5432,host2:5432 with "
            "target_session_attrs=read-write)",
        ),
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        # Behind a pooler in transaction mode a cursor of the server ends with its transaction.
        "DISABLE_SERVER_SIDE_CURSORS": env.flag(
            "INTERLOCK_DATABASE_TRANSACTION_POOLING",
            False,
            "1 behind PgBouncer in transaction mode",
        ),
    }
}
DATABASES["default"]["OPTIONS"] |= env.database_pool(
    "INTERLOCK_DATABASE_POOL", "to PostgreSQL that a web process keeps; 0: one for each request"
)
REDIS_URL = env.redis_url(
    "REDIS_URL", "redis://127.0.0.1:6380/0",
    "Redis 6.2 or later, or Valkey: redis://:password@host:port/0, rediss:// with TLS, or "
    "redis+sentinel://:password@host:26379,host:26379/SERVICE/0; no cluster",
)  # fmt: skip
MLFLOW_TRACKING_URI = env.text(
    "MLFLOW_TRACKING_URI", "", "MLflow's tracking server and registry; empty: no import", "URL"
)
MLFLOW_TOKEN = env.text("MLFLOW_TRACKING_TOKEN", "", "bearer token for MLflow", is_secret=True)
MLFLOW_LOGIN = (
    env.text("MLFLOW_TRACKING_USERNAME", "", "user name for MLflow, instead of a token"),
    env.text("MLFLOW_TRACKING_PASSWORD", "", "and its password", is_secret=True),
)
MLFLOW_LOGIN_REQUIRED = env.flag(
    "INTERLOCK_MLFLOW_LOGIN_REQUIRED", False,
    "1: the alias candidate starts rollouts only where MLflow requires a login",
)  # fmt: skip
MLFLOW_PUBLIC_URL = env.public_url(
    "INTERLOCK_MLFLOW_PUBLIC_URL", MLFLOW_TRACKING_URI,
    "MLflow's address for browsers, for links to runs and versions; empty: MLFLOW_TRACKING_URI",
)  # fmt: skip
MLFLOW_WEBHOOK_SECRET = env.secret(
    "INTERLOCK_MLFLOW_WEBHOOK_SECRET", "",
    "key of MLflow's registry webhooks; empty: the registry is polled only",
)  # fmt: skip
TRITON_URLS = env.items(
    "INTERLOCK_TRITON_URLS", "", "Triton's HTTP endpoints of the default serving cluster"
)
TRITON_TOKEN = env.secret(
    "INTERLOCK_TRITON_TOKEN", "",
    "the value that Triton's control APIs require in the header interlock-control; empty: they are "
    "open, and the fleet page says so",
)  # fmt: skip
MODEL_REPOSITORY = Path(
    env.text(
        "INTERLOCK_MODEL_REPOSITORY", "",
        "the model repository that the control plane writes and Triton reads; empty: "
        ".state/triton/repository", "path",
    )
    or BASE_DIR / ".state/triton/repository"
)  # fmt: skip
ARTIFACT_DIR = Path(
    env.text("INTERLOCK_ARTIFACT_DIR", "", "imported model files; empty: .state/artifacts", "path")
    or BASE_DIR / ".state/artifacts"
)
DATAPLANE_URL = env.text(
    "INTERLOCK_DATAPLANE_URL", "http://127.0.0.1:8080", "predict URL that the web UI shows", "URL"
)
PROMETHEUS_URL = env.service_url(
    "INTERLOCK_PROMETHEUS_URL", "the Prometheus of Prometheus checks; empty: such checks hold"
)
WEBHOOK_SECRET = env.webhook_secret(
    "INTERLOCK_WEBHOOK_SECRET",
    "signs requests of webhook checks (Standard Webhooks): whsec_ and a key in base64; empty: they "
    "are not signed",
)  # fmt: skip
INSTANCE_TOKEN = env.secret(
    "INTERLOCK_INSTANCE_TOKEN", "",
    "the token of the first data-plane instance; with INTERLOCK_OWN_TOKENS_REQUIRED=0, of all",
)  # fmt: skip
OWN_TOKENS_REQUIRED = env.flag(
    "INTERLOCK_OWN_TOKENS_REQUIRED", False,
    "1: each data-plane instance needs its own token, and only messages signed with it count",
)  # fmt: skip
ARTIFACT_BYTES_MAX = env.integer(
    "INTERLOCK_ARTIFACT_BYTES_MAX", 2 * 1024**3, "largest model file", "bytes", at_least=1
)
INSPECT_MEMORY_BYTES_MAX = env.integer(
    "INTERLOCK_INSPECT_MEMORY_BYTES_MAX", 8 * 1024**3,
    "memory of the process that inspects an imported file; it needs about three times the file",
    "bytes", at_least=1024**3,
)  # fmt: skip
INSPECT_TIMEOUT_S = env.integer(
    "INTERLOCK_INSPECT_TIMEOUT_S", 180, "longest inspection of an imported file", "s", at_least=10
)
TRIAL_S = env.integer(
    "INTERLOCK_TRIAL_S", 20, "a model that takes longer for a trial request is refused", "s",
    at_least=1,
)  # fmt: skip
DEPLOY_WITHIN_S = env.integer(
    "INTERLOCK_DEPLOY_WITHIN_S", 600,
    "a deployment that takes longer to be ready has failed", "s", at_least=10,
)  # fmt: skip
TRITON_BACKEND = env.choice(
    "INTERLOCK_TRITON_BACKEND", "auto", ("auto", "python", "onnxruntime"),
    "Triton's backend; auto is onnxruntime where the servers have it, else python",
)  # fmt: skip
TRITON_INSTANCES = env.integer(
    "INTERLOCK_TRITON_INSTANCES", 1, "of each version in each server (instance_group)",
    "instances", at_least=1,
)  # fmt: skip
REGISTER_DIR = env.text(
    "INTERLOCK_REGISTER_DIR", "",
    "versions may be registered from file: URIs below this directory; empty: from none", "path",
)  # fmt: skip
MLFLOW_ARTIFACT_DIR = env.text(
    "INTERLOCK_MLFLOW_ARTIFACT_DIR", "",
    "the directory of MLflow's artifacts where they are local files which its server does not "
    "serve; empty: such artifacts are refused", "path",
)  # fmt: skip
REGISTER_HOSTS = [
    host.lower()
    for host in env.items(
        "INTERLOCK_REGISTER_HOSTS", "",
        "versions may be registered from https: URIs at these hosts; empty: from none",
    )
]  # fmt: skip
WAREHOUSE_URL = env.text(
    "INTERLOCK_WAREHOUSE_URL", "",
    "an Ibis URL (duckdb://, trino://user@host/catalog/schema) that results are computed from; "
    "empty: PostgreSQL", "URL",
)  # fmt: skip
WAREHOUSE_EXPOSURES = env.text(
    "INTERLOCK_WAREHOUSE_EXPOSURES", "exposures", "its exposures", "table or Parquet glob"
)
WAREHOUSE_OUTCOMES = env.text(
    "INTERLOCK_WAREHOUSE_OUTCOMES", "outcomes", "its outcomes", "table or Parquet glob"
)
WAREHOUSE_MEASURED = env.text(
    "INTERLOCK_WAREHOUSE_MEASURED", "", "its measurements; empty: none", "table or Parquet glob"
)
OUTCOME_CLOCK_SKEW_S = env.integer(
    "INTERLOCK_OUTCOME_CLOCK_SKEW_S", 5,
    "an outcome counts though its clock puts it this long before its unit's exposure", "s",
    at_least=0,
)  # fmt: skip
IMPORT_BYTES_MAX = env.integer(
    "INTERLOCK_IMPORT_BYTES_MAX", 512 * 1024**2, "largest file of outcomes", "bytes", at_least=1
)
# The pages that take files.
UPLOAD_PAGES = ("version-register", "outcome-import")
FILE_UPLOAD_HANDLERS = ["apps.models.uploads.ArtifactUploadHandler"]
INSTANCE_LIVE_S = env.integer(
    "INTERLOCK_INSTANCE_LIVE_S", 10,
    "an instance that has not reported for longer is silent, and holds rollouts", "s", at_least=3,
)  # fmt: skip
INSTANCE_FORGOTTEN_S = env.integer(
    "INTERLOCK_INSTANCE_FORGOTTEN_S", 900,
    "an instance that is silent for longer no longer holds rollouts", "s", at_least=10,
)  # fmt: skip

LOOP_LATE_S = env.integer(
    "INTERLOCK_LOOP_LATE_S", 30,
    "a loop of the control plane without a tick for longer is shown as stopped on every page", "s",
    at_least=5,
)  # fmt: skip

RETENTION_DAYS = {
    kind.name: env.days(
        kind.variable, kind.days,
        f"{kind.what}; kept this long after {kind.counted_from}; 0: for ever",
        at_least=kind.least_days,
    )
    for kind in KINDS
}  # fmt: skip

# Read by the command `bootstrap` alone.
env.declare("INTERLOCK_ADMIN_USERNAME", "admin", "name of the first administrator")
env.declare(
    "INTERLOCK_ADMIN_PASSWORD", "",
    "the first administrator's password, read when that account is made; `./run up` makes one",
    is_secret=True,
)  # fmt: skip

# --- Notifications -------------------------------------------------------------------------------
PUBLIC_URL = env.service_url(
    "INTERLOCK_PUBLIC_URL",
    "the web UI's address, e.g. https://interlock.example.com; empty: messages carry no links",
).rstrip("/")  # fmt: skip
WEBHOOK_ALLOWED = env.allow_list(
    "INTERLOCK_WEBHOOK_ALLOWED",
    "private networks, addresses and names that notifications and webhook checks may call "
    "(10.20.0.0/16,hooks.internal); empty: public addresses only. Link-local and metadata "
    "addresses and Interlock's own services are never called",
)  # fmt: skip
OWN_SERVICES = env.own_services(
    "INTERLOCK_OWN_SERVICES",
    "further servers of this installation that nothing may call, host:port or host",
)  # fmt: skip
EMAIL_SERVER = env.mail_server(
    "INTERLOCK_EMAIL_URL",
    "the mail server: smtp://host:25, smtp+starttls://user:password@host:587 or "
    "smtps://user:password@host:465; empty: no e-mail",
)  # fmt: skip
DEFAULT_FROM_EMAIL = env.text("INTERLOCK_EMAIL_FROM", "interlock@localhost", "sender of e-mail")

# --- REST API ------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "controlplane.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PAGINATION_CLASS": "controlplane.pagination.Pages",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "controlplane.errors.exception_handler",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["apps.lib.parsing.BoundedJSONParser"],
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    # Only logged-in users can read the schema.
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "TITLE": "Interlock",
    "DESCRIPTION": "Manage models, versions, rollouts and experiments, for example from CI.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    # Unique names: two fields are called kind, and a release's state is a phase.
    "ENUM_NAME_OVERRIDES": {
        "PhaseEnum": "apps.rollouts.states.Phase",
        "RegistryStateEnum": "apps.models.states.RegistryState",
        "TargetKindEnum": "apps.notifications.models.NotificationTarget.Kind",
    },
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# --- Celery: it only triggers work; the state is in PostgreSQL -----------------------------------
CELERY_BROKER_URL = env.broker_url(REDIS_URL)
CELERY_BROKER_USE_SSL = env.broker_tls(REDIS_URL)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 600, **env.broker_options(REDIS_URL)}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# No limit: workers must survive a long outage of Redis.
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_TASK_TIME_LIMIT = 540
CELERY_TASK_SOFT_TIME_LIMIT = 500
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
# A task expires after its period: the next one does its work.
CELERY_BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    name: {"task": name, "schedule": period_s, "options": {"expires": max(2.0, period_s)}}
    for name, period_s in {
        "models.reconcile_deployments": 1.0,
        "models.register": 1.0,
        "models.sync_registry": 10.0,
        "rollouts.tick": 1.0,
        "rollouts.watch_traffic": 5.0,
        "rollouts.watch_ends": 30.0,
        "rollouts.start_candidates": 5.0,
        "identity.check_services": 60.0,
        "experiments.refresh_results": 5.0,
        "rollouts.prune": 3600.0,
        "notifications.deliver": 1.0,
        "notifications.prune": 3600.0,
        "retention.run": 60.0,
    }.items()
}


# --- Admin ---------------------------------------------------------------------------------------
def _icon_url(_: object) -> str:
    # Imported here: beat reads the settings but needs neither templates nor a database.
    from django.templatetags.static import static

    return static("interlock/icon.svg")


UNFOLD = {
    "SITE_TITLE": "Interlock admin",
    "SITE_HEADER": "Interlock",
    "SITE_URL": "/",
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": _icon_url,
        }
    ],
}

# --- Text, time, static files --------------------------------------------------------------------
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "apps.lib.pages.PlotlyFinder",
]
# Served from the packages, hashed and compressed; `collectstatic` is not needed.
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "controlplane.static.HashedStorage"},
}

# --- Logging -------------------------------------------------------------------------------------
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {
        "handlers": ["stderr"],
        "level": env.text("INTERLOCK_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR"),
    },
    # Libraries that tell of every request or task, of which there are several a second.
    "loggers": {
        name: {"level": "WARNING"}
        for name in (
            "httpx",
            "httpcore",
            "celery.app.trace",
            "celery.worker",
            "celery.beat",
            "axes",
        )
    },
}
