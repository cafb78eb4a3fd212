package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// commit is one caller's operations, queued for a transaction.
type commit struct {
	ctx     context.Context
	ops     []ovsdb.Operation
	results []ovsdb.OperationResult
	done    chan error
}

// defaultMaxBatch bounds the callers that share a transaction.
const defaultMaxBatch = 256

// commit runs the operations in a transaction that other callers may share, and returns their results. Another caller's
// error does not affect them.
func (c *Client) commit(ctx context.Context, ops []ovsdb.Operation) ([]ovsdb.OperationResult, error) {
	m := &commit{ctx: ctx, ops: ops, done: make(chan error, 1)}
	select {
	case c.queue <- m:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.closed:
		return nil, ErrClosed
	}
	// Do not wait for ctx: a queued commit always gets a result, and then the caller knows whether it took effect.
	err := <-m.done
	return m.results, err
}

// commitLoop commits the queue: a single commit at once, and together all commits that arrived during the previous
// transaction.
func (c *Client) commitLoop(ctx context.Context) {
	for {
		var batch []*commit
		select {
		case <-ctx.Done():
			return
		case m := <-c.queue:
			batch = append(batch, m)
		}
	more:
		for len(batch) < c.maxBatch {
			select {
			case m := <-c.queue:
				batch = append(batch, m)
			default:
				break more
			}
		}
		c.commitBatch(batch)
	}
}

func (c *Client) commitBatch(batch []*commit) {
	if err := c.transactAll(batch); err != nil {
		var refused *rejectedError
		if len(batch) > 1 && errors.As(err, &refused) {
			// The server rejected one of them, so none took effect. Committed alone, each gets its own result.
			for _, m := range batch {
				c.commitBatch([]*commit{m})
			}
			return
		}
		for _, m := range batch {
			m.done <- err
		}
		return
	}
	for _, m := range batch {
		m.done <- nil
	}
}

func (c *Client) transactAll(batch []*commit) error {
	ctx := batch[0].ctx
	if len(batch) > 1 {
		// While there is no session, the deadline of one caller must not fail the others.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), echoTimeout)
		defer cancel()
	}
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	var ops []ovsdb.Operation
	for _, m := range batch {
		ops = append(ops, m.ops...)
	}
	results, err := s.transact(ops)
	if err != nil {
		return err
	}
	for _, m := range batch {
		m.results, results = results[:len(m.ops)], results[len(m.ops):]
	}
	return nil
}

var rowNames atomic.Uint64

// rowName is a name for an inserted row, by which other operations of the transaction refer to it.
func rowName() string { return fmt.Sprintf("row%d", rowNames.Add(1)) }

// where is the condition column == value.
func where(column string, value any) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition(column, ovsdb.ConditionEqual, value)}
}

func uuidSet(uuids ...string) ovsdb.OvsSet {
	set := ovsdb.OvsSet{GoSet: make([]any, len(uuids))}
	for i, u := range uuids {
		set.GoSet[i] = ovsdb.UUID{GoUUID: u}
	}
	return set
}

func mutate(table string, condition []ovsdb.Condition, mutations ...ovsdb.Mutation) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: condition, Mutations: mutations}
}
