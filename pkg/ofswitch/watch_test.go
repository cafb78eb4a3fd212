package ofswitch

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchGroupsWaits: a socket appears when the program binds it, and refuses connections until the program listens.
func TestWatchGroupsWaits(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	done := make(chan error, 1)
	go func() { done <- watchGroups(t.Context(), socket) }()
	time.Sleep(3 * askPause) // without a socket
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), socket)
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * askPause) // with one that refuses connections
	select {
	case err := <-done:
		t.Fatalf("before the program listened: %v", err)
	default:
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var request struct{ Method string }
	if err := json.NewDecoder(conn).Decode(&request); err != nil || request.Method != "ofctl/send" {
		t.Errorf("asked %+v: %v", request, err)
	}
	if err := json.NewEncoder(conn).Encode(map[string]any{"id": 0, "result": "sent"}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
