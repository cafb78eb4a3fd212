package datapath

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, checksums := range map[string]bool{"netdev": true, "system": false} {
		if d, err := Parse(text); err != nil || string(d) != text || d.Checksums() != checksums {
			t.Errorf("Parse(%s) = %q, %v; checksums at sending: %t, want %t", text, d, err, d.Checksums(), checksums)
		}
	}
	if _, err := Parse("kernel"); err == nil ||
		!strings.Contains(err.Error(), `datapath "kernel": want netdev or system`) {
		t.Errorf("Parse(kernel): %v; want what would be right", err)
	}
}
