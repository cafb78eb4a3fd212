package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

// Timeouts of a request. Their sum is below wire.Deadline, so that the runtime gets a response and not a timeout.
const (
	readTimeout = 5 * time.Second
	// doTimeout covers all waits of an ADD: the attachment's lock, the port and the flows.
	doTimeout     = 25 * time.Second
	removeTimeout = 12 * time.Second
)

// NetworkName is the name of Weft's network. Attachments do not record a network, so only this network's GC may list
// them.
const NetworkName = "weft"

// Config configures a Server.
type Config struct {
	// Socket is the path of the socket; wire.DefaultSocket when empty. Serve makes its directory accessible to root
	// only.
	Socket string
	// ProcSys is a writable mount of the node's /proc/sys; /proc/sys when empty.
	ProcSys  string
	Settings func() Settings
	Ports    Ports
	Flows    Flows
	// FilterPodLinks makes the host's network stack drop packets that arrive on links of the groups of this package.
	// Recover calls it; then it must hold.
	FilterPodLinks func(context.Context) error
	Log            *slog.Logger
	// Observe, when set, receives the duration of each phase of a command. It is called from many goroutines.
	Observe func(command, phase string, d time.Duration)
	// Result, when set, receives the command and the error code of each response, 0 for success. It is called from many
	// goroutines.
	Result func(command string, code uint)
	// Problem, when set, receives the reason why the socket accepts no connections, and nil once it does. Serve's
	// goroutine calls it.
	Problem func(error)
}

// Server serves the node's CNI requests.
type Server struct {
	cfg         Config
	allocations *allocations
	locks       keyLocks
	copies      copies
	limits      limits
	recovered   bool
}

// NewServer returns a server that does nothing yet: call Recover, then Serve.
func NewServer(cfg Config) *Server {
	if cfg.Socket == "" {
		cfg.Socket = wire.DefaultSocket
	}
	if cfg.ProcSys == "" {
		cfg.ProcSys = "/proc/sys"
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, string, time.Duration) {}
	}
	if cfg.Result == nil {
		cfg.Result = func(string, uint) {}
	}
	if cfg.Problem == nil {
		cfg.Problem = func(error) {}
	}
	return &Server{
		cfg: cfg, allocations: newAllocations(), locks: keyLocks{held: map[model.AttachmentKey]*keyLock{}},
		copies: copies(filepath.Join(filepath.Dir(cfg.Socket), copiesDir)),
		limits: newLimits(maxAttach, maxDetach, maxReading),
	}
}

// Serve listens until the context ends, then waits for all running requests: an ADD is rolled back, the others are
// finished. Recover must have succeeded. An error of accept, such as too many open files, is reported as a Problem and
// retried; the kernel queues new connections meanwhile, as it does with connections beyond the limits.
func (s *Server) Serve(ctx context.Context) error {
	if !s.recovered {
		return errors.New("serve CNI: Recover must succeed first")
	}
	l, err := listen(s.cfg.Socket)
	if err != nil {
		return err
	}
	var requests sync.WaitGroup
	defer requests.Wait()
	defer l.Close()
	// Close also removes the socket, so that weft-cni fails at once while no agent runs.
	defer context.AfterFunc(ctx, func() { l.Close() })()
	requests.Go(func() { s.deletePending(ctx) })
	s.accept(ctx, l, &requests)
	return nil
}

// accept starts a goroutine for each connection until the context ends.
func (s *Server) accept(ctx context.Context, l *net.UnixListener, requests *sync.WaitGroup) {
	pause := acceptPause
	for {
		select {
		case s.limits.connections <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			<-s.limits.connections
		}
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			s.cfg.Problem(fmt.Errorf("accept on CNI socket %s: %w; retrying, pods cannot be attached or removed until then",
				s.cfg.Socket, err))
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			// Without a free descriptor accept fails also when no connection waits; when it waits for one, the error is over.
			_ = l.SetDeadline(time.Now().Add(acceptPause))
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		pause = acceptPause
		_ = l.SetDeadline(time.Time{})
		s.cfg.Problem(nil)
		if err == nil {
			requests.Go(func() {
				defer func() { <-s.limits.connections }()
				s.handle(ctx, conn)
			})
		}
	}
}

// listen creates the socket, for root only. It replaces the socket of an agent that was killed, and fails when an agent
// still answers on it.
func listen(path string) (*net.UnixListener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the CNI socket: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("restrict the directory of the CNI socket to root: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on CNI socket %s: another agent answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the CNI socket of an earlier agent: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on CNI socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("restrict the CNI socket to root: %w", err)
	}
	return l, nil
}

func (s *Server) handle(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	if err := checkPeer(conn); err != nil {
		s.cfg.Log.Warn("rejected a CNI request", "err", err)
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		s.cfg.Log.Warn("CNI request", "err", err)
		return
	}
	req, netns, err := wire.ReadRequest(conn)
	if errors.Is(err, io.EOF) {
		return // the client only checked whether the agent listens
	}
	if err != nil {
		s.cfg.Log.Warn("invalid CNI request", "err", err)
		s.respond(conn, wire.Response{Error: unreadable(err)})
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go watchPeer(conn, cancel)

	start := time.Now()
	log := s.cfg.Log.With("command", req.Command, "container", req.ContainerID, "interface", req.IfName)
	result, err := s.doLimited(ctx, req, netns)
	// Close before the response: the runtime may unmount the namespace once it has the response, which fails while the
	// file is open.
	if netns != nil {
		netns.Close()
	}
	s.cfg.Observe(req.Command, "total", time.Since(start))
	response := wire.Response{Result: result, Error: toCNI(err)}
	s.cfg.Result(req.Command, code(response.Error))
	switch {
	case err != nil && req.Command == "STATUS":
		log.Debug("CNI request", "err", err)
	case err != nil:
		log.Error("CNI request failed", "err", err, "took", time.Since(start))
	default:
		log.Debug("CNI request", "took", time.Since(start))
	}
	if s.respond(conn, response) || req.Command != "ADD" || err != nil {
		return
	}
	// The runtime did not learn that the ADD succeeded, so it will neither use nor delete the attachment.
	log.Warn("the plugin exited before the response; undoing the ADD")
	undo := wire.Request{Command: "DEL", ContainerID: req.ContainerID, IfName: req.IfName}
	if _, err := s.do(context.WithoutCancel(ctx), undo, nil); err != nil {
		log.Error("undo an unanswered ADD", "err", err)
	}
}

// respond reports whether the response was sent.
func (s *Server) respond(conn *net.UnixConn, resp wire.Response) bool {
	err := conn.SetWriteDeadline(time.Now().Add(readTimeout))
	if err == nil {
		err = wire.WriteResponse(conn, resp)
	}
	if err != nil {
		s.cfg.Log.Warn("CNI request", "err", err)
	}
	return err == nil
}

var errPeerGone = errors.New("the runtime ended weft-cni")

// watchPeer cancels the request when the plugin exits. The plugin sends nothing after its request, so Read returns only
// then, or when the request's connection is closed.
func watchPeer(conn *net.UnixConn, cancel context.CancelCauseFunc) {
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		cancel(errPeerGone)
	}
}

func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("read the peer's credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("read the peer's credentials: %w", err)
	}
	if credErr != nil {
		return fmt.Errorf("read the peer's credentials: %w", credErr)
	}
	return checkUser(cred)
}

func checkUser(cred *unix.Ucred) error {
	if cred.Uid != 0 {
		return fmt.Errorf("the caller (process %d) has user id %d, only root may send CNI requests", cred.Pid, cred.Uid)
	}
	return nil
}

// toCNI gives every error a CNI code: its own, "try again later" for a timeout, and I/O failure for all others.
func toCNI(err error) *types.Error {
	if err == nil {
		return nil
	}
	var e *types.Error
	switch {
	case errors.As(err, &e):
		return types.NewError(e.Code, err.Error(), "")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	default:
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
}

// Range is how much of one of the node's pod CIDRs is in use.
type Range struct {
	CIDR netip.Prefix
	// Used are the addresses that attachments have, Limit as many as they can have.
	Used  int
	Limit float64
}

// Ranges are the pod CIDRs that pods get addresses of now. Any goroutine may call it.
func (s *Server) Ranges() []Range {
	var ranges []Range
	for _, cidr := range s.cfg.Settings().PodCIDRs {
		ranges = append(ranges, Range{CIDR: cidr, Used: s.allocations.used(cidr), Limit: capacity(cidr)})
	}
	return ranges
}

// code is the error's, or 0 for success.
func code(err *types.Error) uint {
	if err == nil {
		return 0
	}
	return err.Code
}

// keyLocks serializes the requests for one attachment.
type keyLocks struct {
	mu   sync.Mutex
	held map[model.AttachmentKey]*keyLock
}

type keyLock struct {
	// token is in the channel while the lock is free.
	token chan struct{}
	users int
}

func (k *keyLocks) lock(ctx context.Context, key model.AttachmentKey) (unlock func(), err error) {
	k.mu.Lock()
	l := k.held[key]
	if l == nil {
		l = &keyLock{token: make(chan struct{}, 1)}
		l.token <- struct{}{}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		l.users--
		if l.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case <-l.token:
		return func() { l.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, errorf(types.ErrTryAgainLater, "another request for %s is still running", key)
	}
}

// busy reports whether a request for the attachment is running.
func (k *keyLocks) busy(key model.AttachmentKey) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[key] != nil
}
