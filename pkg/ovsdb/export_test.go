package ovsdb

// SetMaxBatch bounds the callers per transaction. Call it before the Client is used.
func SetMaxBatch(c *Client, n int) { c.maxBatch = n }
