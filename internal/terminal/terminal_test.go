package terminal_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"

	"github.com/weft-cni/weft/internal/terminal"
)

func TestColorsOnlyOnTerminals(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a character device that is not a terminal
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, w := range []io.Writer{null, &bytes.Buffer{}} {
		if got := terminal.Paint(w, terminal.Red, "text"); got != "text" {
			t.Errorf("%T: %q", w, got)
		}
	}
}

func TestFormat(t *testing.T) {
	var b bytes.Buffer
	show := func(w io.Writer) error { _, err := io.WriteString(w, "table\n"); return err }
	if err := errors.Join(terminal.Format("json").Print(&b, []int{1}, show), terminal.Format("table").Print(&b, nil,
		show)); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "[\n  1\n]\ntable\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	b.Reset()
	if err := terminal.YAML.Print(&b, map[string]any{"a": []int{}}, show); err != nil || b.String() != "a: []\n" {
		t.Errorf("YAML %q, %v", b.String(), err)
	}
	if err := terminal.Name.Check(terminal.Wide, terminal.Name); err != nil {
		t.Error(err)
	}
	for format, valid := range map[terminal.Format]bool{"json": true, "table": true, "yaml": true, "": false, "name": false} {
		if err := format.Check(); (err == nil) != valid {
			t.Errorf("-o %q: %v", format, err)
		}
	}
}

func TestJoin(t *testing.T) {
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for want, list := range map[string][]netip.Addr{"-": nil, "10.0.0.1": {one}, "10.0.0.1,fd00::1": {one, two}} {
		if got := terminal.Join(list); got != want {
			t.Errorf("%v: %q, want %q", list, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for want, got := range map[string]string{
		"1 node": terminal.Count(1, "node"), "0 nodes": terminal.Count(0, "node"), "2 nodes": terminal.Count(2, "node"),
		"1 policy": terminal.Count(1, "policy"), "3 policies": terminal.Count(3, "policy"), "2 gateways": terminal.Count(2, "gateway"),
		"1 process": terminal.Count(1, "process"), "2 processes": terminal.Count(2, "process"),
		"1 of 1 node": terminal.CountOf(1, 1, "node"), "1 of 3 nodes": terminal.CountOf(1, 3, "node"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
