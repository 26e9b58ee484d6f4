-- The catalogue in PostgreSQL (he_server.storage.postgres). Cells are those of he_server.storage.catalogue_file.

CREATE TABLE folder (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    wrapped_key     BYTEA NOT NULL,     -- the folder key under the key-encryption key; empty: not sealed
    store_id        BYTEA NOT NULL,     -- random, of the place where segments lie; empty: none has it yet
    revision        BIGINT NOT NULL,    -- of the newest transaction; who writes locks this row first
    token           BYTEA NOT NULL,     -- of that transaction, random
    schema_version  INTEGER NOT NULL    -- the number of the newest migration
);

CREATE TABLE collections (
    collection_id   BYTEA PRIMARY KEY,
    state           BYTEA NOT NULL,
    manifest        BYTEA NOT NULL
);

CREATE TABLE segments (
    collection_id   BYTEA NOT NULL,
    segment_id      BYTEA NOT NULL,
    cell            BYTEA NOT NULL,
    PRIMARY KEY (collection_id, segment_id)
);

-- Cells do not compress.
ALTER TABLE collections ALTER state SET STORAGE EXTERNAL, ALTER manifest SET STORAGE EXTERNAL;

-- The last transactions, by which a connection that broke finds out whether its own was made, and what each changed,
-- so that other servers read that alone.
CREATE TABLE commits (
    revision        BIGINT PRIMARY KEY,
    token           BYTEA NOT NULL UNIQUE
);

CREATE TABLE changes (
    revision        BIGINT NOT NULL REFERENCES commits ON DELETE CASCADE,
    collection_id   BYTEA NOT NULL,
    segment_id      BYTEA NOT NULL,     -- empty: the collection's own row
    PRIMARY KEY (revision, collection_id, segment_id)
);

CREATE FUNCTION note_collection() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes SELECT revision, COALESCE(NEW.collection_id, OLD.collection_id), '' FROM folder
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION note_segment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes
        SELECT revision, COALESCE(NEW.collection_id, OLD.collection_id), COALESCE(NEW.segment_id, OLD.segment_id)
        FROM folder ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON collections FOR EACH ROW EXECUTE FUNCTION note_collection();
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON segments FOR EACH ROW EXECUTE FUNCTION note_segment();
