-- Run once by the PostgreSQL image on an empty volume; `interlock` itself it makes by itself.
CREATE DATABASE mlflow OWNER interlock;
