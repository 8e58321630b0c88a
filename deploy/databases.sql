-- The databases of a team's Prefect and MLflow servers, and the user whom they belong to, with the password that
-- PGPASSWORD has in the environment. Once, as PostgreSQL's own user: docs/team.md.
\set ON_ERROR_STOP on
\getenv password PGPASSWORD
\if :{?password}
\else
\warn 'PGPASSWORD is not set: `cones servers init`, then `set -a; . ./.env; set +a`'
\endif
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
CREATE ROLE cones LOGIN PASSWORD :'password';
CREATE DATABASE prefect OWNER cones;
CREATE DATABASE mlflow OWNER cones;
CREATE DATABASE mlflow_logins OWNER cones;
