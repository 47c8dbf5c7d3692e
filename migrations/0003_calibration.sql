-- A second dataset, which the job calibrates on beside the one that it works on; pinned at submission like that.
ALTER TABLE job ADD COLUMN calibration TEXT;
ALTER TABLE job ADD COLUMN calibration_sha256 TEXT;
CREATE INDEX job_calibration ON job (calibration_sha256) WHERE calibration_sha256 IS NOT NULL;
