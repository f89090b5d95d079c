"""Settings of the control plane; values come from the environment through `env`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from controlplane import env
from controlplane.retention.declared import KINDS

BASE_DIR = Path(__file__).resolve().parent.parent

# --- Security ------------------------------------------------------------------------------------
DEBUG = env.flag("INTERLOCK_DEBUG", False)
SECRET_KEY = env.secret("INTERLOCK_SECRET_KEY")
ALLOWED_HOSTS = env.items("INTERLOCK_ALLOWED_HOSTS", "127.0.0.1,localhost")
CSRF_TRUSTED_ORIGINS = env.items("INTERLOCK_TRUSTED_ORIGINS")
SECURE_COOKIES = env.flag("INTERLOCK_SECURE_COOKIES", False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_COOKIES
SESSION_COOKIE_HTTPONLY = True
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SECURE_COOKIES else None
X_FRAME_OPTIONS = "DENY"

# The number of trusted proxies in front of the web server that set X-Forwarded-For.
PROXIES = env.integer("INTERLOCK_PROXIES", 0)
# Failed logins of a name from an address until it is locked out. The limits of a name from all
# addresses, and of an address for all names, are ten times as high.
AXES_FAILURE_LIMIT = env.integer("INTERLOCK_LOGIN_FAILURES_MAX", 5, at_least=1)
LOGIN_FAILURES_WIDE_MAX = 10 * AXES_FAILURE_LIMIT
AXES_COOLOFF_TIME = timedelta(minutes=env.integer("INTERLOCK_LOGIN_LOCKED_MIN", 15, at_least=1))
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

# The maximum bytes of a JSON body of the API, and of a form without its files.
DATA_UPLOAD_MAX_MEMORY_SIZE = env.integer(
    "INTERLOCK_API_BODY_BYTES_MAX", 2 * 1024**2, at_least=64 * 1024
)

# --- Data ----------------------------------------------------------------------------------------
# A pool requires CONN_MAX_AGE = 0. Only web processes have a pool.
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        **env.database("DATABASE_URL", "postgresql://interlock@127.0.0.1:5433/interlock"),
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        # Behind a pooler in transaction mode a server-side cursor ends with its transaction.
        "DISABLE_SERVER_SIDE_CURSORS": env.flag("INTERLOCK_DATABASE_TRANSACTION_POOLING", False),
    }
}
DATABASES["default"]["OPTIONS"] |= env.database_pool("INTERLOCK_DATABASE_POOL")
REDIS_URL = env.redis_url("REDIS_URL", "redis://127.0.0.1:6380/0")
MLFLOW_TRACKING_URI = env.text("MLFLOW_TRACKING_URI", "")
MLFLOW_TOKEN = env.text("MLFLOW_TRACKING_TOKEN", "")
MLFLOW_LOGIN = (env.text("MLFLOW_TRACKING_USERNAME", ""), env.text("MLFLOW_TRACKING_PASSWORD", ""))
# Whether `candidate` starts rollouts only if MLflow requires a login to set an alias.
MLFLOW_LOGIN_REQUIRED = env.flag("INTERLOCK_MLFLOW_LOGIN_REQUIRED", False)
# MLflow's URL for browsers, used in links to runs and versions.
MLFLOW_PUBLIC_URL = env.public_url("INTERLOCK_MLFLOW_PUBLIC_URL", MLFLOW_TRACKING_URI)
# The secret of MLflow's webhooks; empty: no webhooks, the registry is only polled.
MLFLOW_WEBHOOK_SECRET = env.secret("INTERLOCK_MLFLOW_WEBHOOK_SECRET", "")
TRITON_URLS = env.items("INTERLOCK_TRITON_URLS")
# The token of Triton's control APIs; empty: they are open, and the fleet page warns.
TRITON_TOKEN = env.secret("INTERLOCK_TRITON_TOKEN", "")
MODEL_REPOSITORY = Path(
    env.text("INTERLOCK_MODEL_REPOSITORY", str(BASE_DIR / ".state/triton/repository"))
)
ARTIFACT_DIR = Path(env.text("INTERLOCK_ARTIFACT_DIR", str(BASE_DIR / ".state/artifacts")))
DATAPLANE_URL = env.text("INTERLOCK_DATAPLANE_URL", "http://127.0.0.1:8080")
# The server of Prometheus checks; empty: such checks cannot be evaluated, and hold.
PROMETHEUS_URL = env.service_url("INTERLOCK_PROMETHEUS_URL")
# The signing key of webhook checks (Standard Webhooks); empty: requests are not signed.
WEBHOOK_SECRET = env.webhook_secret("INTERLOCK_WEBHOOK_SECRET")
INSTANCE_TOKEN = env.secret("INTERLOCK_INSTANCE_TOKEN", "")
# Whether each data-plane instance needs its own token, and messages a seal made with it. The
# shared token above is then no longer valid for every instance.
OWN_TOKENS_REQUIRED = env.flag("INTERLOCK_OWN_TOKENS_REQUIRED", False)
ARTIFACT_BYTES_MAX = env.integer("INTERLOCK_ARTIFACT_BYTES_MAX", 2 * 1024**3, at_least=1)
# The memory limit of the process that inspects an artifact.
INSPECT_MEMORY_BYTES_MAX = env.integer(
    "INTERLOCK_INSPECT_MEMORY_BYTES_MAX", 8 * 1024**3, at_least=1024**3
)
INSPECT_TIMEOUT_S = env.integer("INTERLOCK_INSPECT_TIMEOUT_S", 180, at_least=10)
# The timeout of the trial request; a model that exceeds it is refused.
TRIAL_S = env.integer("INTERLOCK_TRIAL_S", 20, at_least=1)
# The time limit for a version to become ready for the first time; then its deployment fails.
DEPLOY_WITHIN_S = env.integer("INTERLOCK_DEPLOY_WITHIN_S", 600, at_least=10)
# Triton's backend (auto: the ONNX Runtime backend if available), and processes per version.
TRITON_BACKEND = env.choice("INTERLOCK_TRITON_BACKEND", "auto", ("auto", "python", "onnxruntime"))
TRITON_INSTANCES = env.integer("INTERLOCK_TRITON_INSTANCES", 1, at_least=1)
# Versions can be registered from file: URIs below this directory; empty: from none.
REGISTER_DIR = env.text("INTERLOCK_REGISTER_DIR", "")
# MLflow's artifacts in the local file system are read only below this directory; empty: never.
MLFLOW_ARTIFACT_DIR = env.text("INTERLOCK_MLFLOW_ARTIFACT_DIR", "")
# Versions can be registered from https: URIs at these hosts (host or host:port).
REGISTER_HOSTS = [host.lower() for host in env.items("INTERLOCK_REGISTER_HOSTS")]
# The source of results instead of PostgreSQL: an Ibis URL, and three tables or Parquet globs.
WAREHOUSE_URL = env.text("INTERLOCK_WAREHOUSE_URL", "")
WAREHOUSE_EXPOSURES = env.text("INTERLOCK_WAREHOUSE_EXPOSURES", "exposures")
WAREHOUSE_OUTCOMES = env.text("INTERLOCK_WAREHOUSE_OUTCOMES", "outcomes")
WAREHOUSE_MEASURED = env.text("INTERLOCK_WAREHOUSE_MEASURED", "")
# Tolerance for clock skew: an outcome may precede its unit's exposure by this time.
OUTCOME_CLOCK_SKEW_S = env.integer("INTERLOCK_OUTCOME_CLOCK_SKEW_S", 5, at_least=0)
# The maximum bytes of one file of outcomes.
IMPORT_BYTES_MAX = env.integer("INTERLOCK_IMPORT_BYTES_MAX", 512 * 1024**2, at_least=1)
# The pages that accept file uploads.
UPLOAD_PAGES = ("version-register", "outcome-import")
FILE_UPLOAD_HANDLERS = ["apps.models.uploads.ArtifactUploadHandler"]
# An instance without a report for this time is not live: rollouts do not wait for it.
INSTANCE_LIVE_S = env.integer("INTERLOCK_INSTANCE_LIVE_S", 10, at_least=3)
# An instance that became silent without a shutdown message holds rollouts for this time.
INSTANCE_FORGOTTEN_S = env.integer("INTERLOCK_INSTANCE_FORGOTTEN_S", 900, at_least=10)

# A control loop without a successful turn for this time is shown as stopped on every page.
LOOP_LATE_S = env.integer("INTERLOCK_LOOP_LATE_S", 30, at_least=5)

# Retention in days, by kind; 0: for ever.
RETENTION_DAYS = {
    kind.name: env.days(kind.variable, kind.days, at_least=kind.least_days) for kind in KINDS
}

# --- Notifications -------------------------------------------------------------------------------
# The web UI's URL for links in messages; empty: messages have no links.
PUBLIC_URL = env.service_url("INTERLOCK_PUBLIC_URL").rstrip("/")
# Private networks and host names that notifications and webhook checks may call.
WEBHOOK_ALLOWED = env.allow_list("INTERLOCK_WEBHOOK_ALLOWED")
# More servers of this installation, which notifications and webhook checks must never call.
OWN_SERVICES = env.own_services("INTERLOCK_OWN_SERVICES")
# Empty: no e-mail is sent.
EMAIL_SERVER = env.mail_server("INTERLOCK_EMAIL_URL")
DEFAULT_FROM_EMAIL = env.text("INTERLOCK_EMAIL_FROM", "interlock@localhost")

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
    "root": {"handlers": ["stderr"], "level": env.text("INTERLOCK_LOG_LEVEL", "INFO")},
    # Libraries that log every request or task, several per second.
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
