package cni

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

func TestServeNeedsRecover(t *testing.T) {
	s := NewServer(Config{Socket: filepath.Join(t.TempDir(), "s", "cni.sock"), Log: slog.New(slog.DiscardHandler)})
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "Recover") {
		t.Errorf("%v", err)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "cni.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("two agents on one socket: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	l, err = listen(path)
	if err != nil {
		t.Errorf("the socket of a killed agent: %v", err)
	}
	l.Close()
}

// TestTimes: weft-cni waits longer for the response than the slowest request takes, including all failures on its way.
func TestTimes(t *testing.T) {
	const (
		// The time by which ovsdb.Client may exceed its context, until it knows the outcome of an open transaction.
		portOverrun = 5 * time.Second
		// The cleanup after its failed AddPort.
		portCleanup = 5 * time.Second
	)
	for command, longest := range map[string]time.Duration{
		"ADD": readTimeout + doTimeout + portOverrun + portCleanup + removeTimeout + portOverrun,
		"DEL": readTimeout + doTimeout + removeTimeout + portOverrun,
	} {
		if longest >= wire.Deadline {
			t.Errorf("%s takes up to %v, and weft-cni gives up after %v", command, longest, wire.Deadline)
		}
	}
}

func TestCheckUser(t *testing.T) {
	if err := checkUser(&unix.Ucred{Uid: 0, Pid: 1}); err != nil {
		t.Error(err)
	}
	if err := checkUser(&unix.Ucred{Uid: 1000, Pid: 7}); err == nil || !strings.Contains(err.Error(), "1000") {
		t.Errorf("%v", err)
	}
}

func TestStatus(t *testing.T) {
	set := Settings{}
	s := NewServer(Config{Settings: func() Settings { return set }})
	status := func(conf string) error {
		_, err := s.do(t.Context(), wire.Request{Command: "STATUS", Config: []byte(conf)}, nil)
		return err
	}
	if err := status(`{}`); codeOf(err) != 50 || !strings.Contains(err.Error(), "no pod CIDR") {
		t.Errorf("%v", err)
	}
	set = Settings{NotReady: "because", PodCIDRs: cidrs("10.0.0.0/29")}
	if err := status(`{}`); codeOf(err) != 50 || !strings.Contains(err.Error(), "because") {
		t.Errorf("%v", err)
	}
	set.NotReady, set.Degraded = "", "away"
	if err := status(`{}`); codeOf(err) != 50 || !strings.Contains(err.Error(), "away") {
		t.Errorf("%v", err)
	}
	set.Degraded = ""
	if err := status(`{}`); err != nil {
		t.Error(err)
	}
	if err := status(`{"typo": 1}`); codeOf(err) != types.ErrUnsupportedField {
		t.Errorf("%v", err)
	}
	if _, err := s.do(t.Context(), wire.Request{Command: "DANCE"}, nil); codeOf(err) !=
		types.ErrInvalidEnvironmentVariables {
		t.Errorf("%v", err)
	}
}

func TestKeyLocks(t *testing.T) {
	k := keyLocks{held: map[model.AttachmentKey]*keyLock{}}
	unlock, err := k.lock(t.Context(), key(1))
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(t.Context(), key(2))
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := k.lock(ctx, key(1)); codeOf(err) != types.ErrTryAgainLater {
		t.Errorf("%v", err)
	}
	if !k.busy(key(1)) || k.busy(key(2)) {
		t.Error("busy")
	}
	unlock()
	if len(k.held) != 0 {
		t.Errorf("%d locks are left", len(k.held))
	}
}

func TestToCNI(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code uint
	}{
		{context.DeadlineExceeded, types.ErrTryAgainLater},
		{net.ErrClosed, types.ErrIOFailure},
		{transient("do it", net.ErrClosed), types.ErrTryAgainLater},
	} {
		if e := toCNI(tc.err); e.Code != tc.code || e.Msg != tc.err.Error() {
			t.Errorf("%v: %+v", tc.err, e)
		}
	}
	if toCNI(nil) != nil {
		t.Error("no error became one")
	}
}
