package cni

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/cni/wire"
)

// served is a server of a ready node that sends its Problems to the channel. It needs neither root nor a switch.
func served(t *testing.T, l limits, settings func() Settings) (s *Server, problems <-chan error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "wc") //nolint:usetesting // a test's own directory has too long a name for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	reported := make(chan error, 1000)
	if settings == nil {
		settings = func() Settings { return Settings{PodCIDRs: cidrs("10.0.0.0/24")} }
	}
	s = NewServer(Config{
		Socket: filepath.Join(dir, "s", "cni.sock"), Settings: settings, Log: slog.New(slog.DiscardHandler),
		Problem: func(err error) { reported <- err },
	})
	s.recovered, s.limits = true, l
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	testenv.Until(t, "the server listens", func() bool {
		// The socket appears before the server listens on it, and gets its mode after that.
		info, err := os.Stat(s.cfg.Socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
	return s, reported
}

// call returns the error that the plugin would print.
func call(s *Server, command string) error {
	resp, err := wire.Call(s.cfg.Socket,
		wire.Request{Command: command, ContainerID: "c", IfName: "eth0", Config: []byte(`{}`)}, nil)
	if err == nil && resp.Error != nil {
		err = resp.Error
	}
	return err
}

// TestAcceptErrorPasses: an agent without free file descriptors reports that, and answers once it has one again.
func TestAcceptErrorPasses(t *testing.T) {
	s, problems := served(t, newLimits(4, 4, 4), nil)
	release := exhaustFiles(t, 1) // for the caller's end
	answer := make(chan error, 1)
	go func() { answer <- call(s, "STATUS") }()
	if err := <-problems; !errors.Is(err, syscall.EMFILE) || !strings.Contains(err.Error(), s.cfg.Socket) {
		t.Errorf("problem %v", err)
	}
	release()
	if err := <-answer; err != nil {
		t.Errorf("the request that came meanwhile: %v", err)
	}
	waitFor(t, problems, "the problem is over", func(err error) bool { return err == nil })
}

// TestAcceptErrorEnds: the report ends with the shortage, also when no other request comes.
func TestAcceptErrorEnds(t *testing.T) {
	s, problems := served(t, newLimits(4, 4, 4), nil)
	release := exhaustFiles(t, 2) // for both ends of one connection
	conn, err := net.Dial("unix", s.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	waitFor(t, problems, "the connection is accepted", func(err error) bool { return err == nil })
	waitFor(t, problems, "a problem while no connection waits", func(err error) bool {
		return errors.Is(err, syscall.EMFILE)
	})
	release()
	waitFor(t, problems, "the problem is over", func(err error) bool { return err == nil })
}

// waitFor reads the server's Problems until one is as described.
func waitFor(t *testing.T, problems <-chan error, what string, ok func(error) bool) {
	t.Helper()
	testenv.Until(t, what, func() bool {
		select {
		case err := <-problems:
			return ok(err)
		default:
			return false
		}
	})
}

// exhaustFiles uses up all but that many file descriptors of the process until release is called.
func exhaustFiles(t *testing.T, left int) (release func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(old.Cur, 256), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	var taken []int
	release = sync.OnceFunc(func() {
		for _, fd := range taken {
			_ = unix.Close(fd)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, fd)
	}
	for range left {
		last := len(taken) - 1
		_ = unix.Close(taken[last])
		taken = taken[:last]
	}
	return release
}

// TestBusy: one request too many is rejected at once; waiting ADDs do not delay requests that free resources.
func TestBusy(t *testing.T) {
	gate := make(chan struct{})
	s, _ := served(t, newLimits(2, 1, 4), func() Settings { <-gate; return Settings{PodCIDRs: cidrs("10.0.0.0/24")} })
	s.limits.attach <- struct{}{}
	s.limits.attach <- struct{}{}
	for _, command := range []string{"ADD", "CHECK"} {
		if err := call(s, command); codeOf(err) != types.ErrTryAgainLater ||
			!strings.Contains(err.Error(), "busy with 2 requests") {
			t.Errorf("%s: %v", command, err)
		}
	}
	if err := call(s, "DEL"); err != nil {
		t.Errorf("DEL beside two ADDs: %v", err)
	}
	running := make(chan error, 1)
	go func() { running <- call(s, "STATUS") }()
	testenv.Until(t, "STATUS runs", func() bool { return len(s.limits.detach) == 1 })
	if err := call(s, "DEL"); codeOf(err) != types.ErrTryAgainLater || !strings.Contains(err.Error(), "busy") {
		t.Errorf("DEL: %v", err)
	}
	if err := call(s, "STATUS"); codeOf(err) != errNotAvailable || !strings.Contains(err.Error(), "busy") {
		t.Errorf("STATUS: %v", err)
	}
	close(gate)
	if err := <-running; err != nil {
		t.Error(err)
	}
	testenv.Until(t, "the place is free", func() bool { return len(s.limits.detach) == 0 })
	if err := call(s, "DEL"); err != nil {
		t.Error(err)
	}
}

// TestHalfOpenClients: clients that connect and send nothing, or an incomplete request, hold a bounded number of
// connections for a bounded time, and all other callers are answered afterwards.
func TestHalfOpenClients(t *testing.T) {
	s, _ := served(t, newLimits(1, 1, 1), nil)
	const clients = 9 // three times the connections that the server takes
	var conns []net.Conn
	for i := range clients {
		conn, err := net.Dial("unix", s.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
		switch i % 3 {
		case 0:
			_, err = conn.Write([]byte{0})
		case 1:
			_, err = conn.Write([]byte{0, 0x3f, 0xff, 0xff, '{'})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	testenv.Until(t, "the server has as many as it takes", func() bool { return len(s.limits.connections) == 3 })
	for _, conn := range conns[3:] {
		conn.Close()
	}
	if err := call(s, "STATUS"); err != nil { // answered when the server has given the others up
		t.Error(err)
	}
	// A caller that sent a part is told that the rest is missing.
	var resp wire.Response
	head := make([]byte, 4)
	if _, err := conns[1].Read(head); err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(conns[1]).Decode(&resp); err != nil || resp.Error.Code != types.ErrTryAgainLater {
		t.Errorf("%+v, %v", resp, err)
	}
}
