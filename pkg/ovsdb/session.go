package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-org/libovsdb/cache"
	"github.com/ovn-org/libovsdb/client"
	dbmodel "github.com/ovn-org/libovsdb/model"
	"github.com/ovn-org/libovsdb/ovsdb"
)

const (
	// echoInterval is the interval of probes on the connection, echoTimeout the timeout of a probe.
	echoInterval = 5 * time.Second
	echoTimeout  = 5 * time.Second
	// transactTimeout is the timeout of a transaction.
	transactTimeout = 5 * time.Second
)

// session is one connection to ovsdb-server with its monitored copy of the database. A lost connection ends the
// session; the next one starts with a fresh copy, so no stale data survives.
type session struct {
	db     client.Client
	giveUp chan struct{} // receives when the connection must be closed
	done   chan struct{} // closed when the connection is lost
}

// dial connects and returns when the copy of the database is complete. handler receives every row in it.
func dial(ctx context.Context, endpoint string, log logr.Logger, handler cache.EventHandler) (*session, error) {
	m, err := databaseModel()
	if err != nil {
		return nil, err
	}
	db, err := client.NewOVSDBClient(m, client.WithEndpoint(endpoint), client.WithLogger(&log))
	if err != nil {
		return nil, fmt.Errorf("open OVSDB at %s: %w", endpoint, err)
	}
	if err := db.Connect(ctx); err != nil {
		return nil, fmt.Errorf("connect to OVSDB at %s (%s): %w", endpoint, advice(err), err)
	}
	// Cache is nil when the server has closed the connection meanwhile.
	if c := db.Cache(); c != nil {
		c.AddEventHandler(handler)
	}
	monitor := db.NewMonitor()
	monitor.Tables = monitoredTables()
	if _, err = db.Monitor(ctx, monitor); err != nil {
		db.Close()
		return nil, fmt.Errorf("monitor OVSDB at %s: %w", endpoint, err)
	}
	s := &session{db: db, giveUp: make(chan struct{}, 1), done: make(chan struct{})}
	go s.watch()
	return s, nil
}

// advice says what to look at when a connection fails.
func advice(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "it runs as a user of its own: add DAC_OVERRIDE to the agent's capabilities in the manifest"
	}
	return "is ovsdb-server running?"
}

// watch closes done when the connection is lost. The probe also covers a lost notification, which libovsdb sends
// without blocking.
func (s *session) watch() {
	defer close(s.done)
	defer s.db.Close()
	probe := time.NewTicker(echoInterval)
	defer probe.Stop()
	for {
		select {
		case <-s.db.DisconnectNotify():
			return
		case <-s.giveUp:
			return
		case <-probe.C:
			if !s.alive() {
				return
			}
		}
	}
}

func (s *session) alive() bool {
	ctx, cancel := context.WithTimeout(context.Background(), echoTimeout)
	defer cancel()
	return s.db.Echo(ctx) == nil
}

func (s *session) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// transact runs one transaction: all operations take effect or none. It does not end early with its callers: a
// transaction without a reply may still take effect at any time, while the copy shows that it has not. So without a
// reply the session ends, and the next session's copy shows the outcome.
func (s *session) transact(ops []ovsdb.Operation) ([]ovsdb.OperationResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), transactTimeout)
	defer cancel()
	results, err := s.db.Transact(ctx, ops...)
	if err != nil {
		// libovsdb's error for a lost connection depends on the moment, so probe the connection.
		if ctx.Err() != nil || !s.alive() {
			notify(s.giveUp)
			<-s.done // a retry must not get the same session
			return nil, fmt.Errorf("%w: %w", ErrDisconnected, err)
		}
		return nil, err
	}
	if failed, err := ovsdb.CheckOperationResults(results, ops); err != nil {
		for _, f := range failed {
			err = fmt.Errorf("%s %s: %w", f.Operation().Op, f.Operation().Table, f)
		}
		return nil, &rejectedError{err}
	}
	return results, nil
}

// rejectedError is a transaction that the server rejected.
type rejectedError struct{ error }

func (e *rejectedError) Unwrap() error { return e.error }

func (s *session) interfaceByName(ctx context.Context, name string) (*interfaceRow, error) {
	row := &interfaceRow{Name: name}
	if err := s.db.Get(ctx, row); errors.Is(err, client.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read Interface %s: %w", name, err)
	}
	return row, nil
}

func (s *session) portByName(ctx context.Context, name string) (*portRow, error) {
	row := &portRow{Name: name}
	if err := s.db.Get(ctx, row); errors.Is(err, client.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read Port %s: %w", name, err)
	}
	return row, nil
}

func (s *session) root() (*rootRow, error) {
	all, err := rows[rootRow](s, tableRoot)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if len(all) == 1 {
			return r, nil
		}
	}
	return nil, fmt.Errorf("the database has %d Open_vSwitch rows instead of one; run \"ovs-vsctl init\"", len(all))
}

// where selects the row. There is only one, but OVSDB requires a condition.
func (r *rootRow) where() []ovsdb.Condition { return where("_uuid", ovsdb.UUID{GoUUID: r.UUID}) }

// rows returns a table of the copy, by UUID. The rows are shallow clones: fields may be replaced, but maps and slices
// must not be written to.
func rows[T any](s *session, table string) (map[string]*T, error) {
	c := s.db.Cache()
	if c == nil {
		return nil, ErrDisconnected
	}
	shared := c.Table(table).RowsShallow()
	m := make(map[string]*T, len(shared))
	for uuid, row := range shared {
		r, ok := row.(*T)
		if !ok {
			return nil, fmt.Errorf("table %s of the copy of OVSDB holds a %T", table, row)
		}
		clone := *r
		m[uuid] = &clone
	}
	return m, nil
}

// waiters wakes goroutines that wait for a row to change.
type waiters struct {
	mu sync.Mutex
	by map[string]map[chan struct{}]struct{}
}

// add returns a channel that receives, coalesced, after changes of the row with that key, and the function that ends
// this.
func (w *waiters) add(key string) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by = map[string]map[chan struct{}]struct{}{}
	}
	if w.by[key] == nil {
		w.by[key] = map[chan struct{}]struct{}{}
	}
	w.by[key][ch] = struct{}{}
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.by[key], ch)
		if len(w.by[key]) == 0 {
			delete(w.by, key)
		}
	}
}

func (w *waiters) wake(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.by[key] {
		notify(ch)
	}
}

// notify makes ch readable, unless it already is.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// keyRoot is the waiters' key of the Open_vSwitch row; other keys are interface names, which cannot contain a slash.
const keyRoot = "/"

// waitKey is the waiters' key of the row; false for tables without waiters.
func waitKey(row dbmodel.Model) (string, bool) {
	switch r := row.(type) {
	case *rootRow:
		return keyRoot, true
	case *interfaceRow:
		return r.Name, true
	}
	return "", false
}
