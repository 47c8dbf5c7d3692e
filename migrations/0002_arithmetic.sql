-- In what arithmetic a job computed when it last started ("cpu/fp32", "cuda/bf16"): rows made in another are dropped. What
-- a GPU's earlier rows were made in is not known any more: NULL, which is none.
ALTER TABLE job ADD COLUMN arithmetic TEXT;
UPDATE job SET arithmetic = 'cpu/fp32' WHERE ran_on = 'cpu';
