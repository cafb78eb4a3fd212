package version

import (
	"runtime/debug"
	"strings"
	"testing"
)

// TestCommit: the linker's commit counts before the go command's, which says when files had been changed.
func TestCommit(t *testing.T) {
	built := func(settings ...debug.BuildSetting) *debug.BuildInfo { return &debug.BuildInfo{Settings: settings} }
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef"}
	for _, tc := range []struct {
		linked string
		build  *debug.BuildInfo
		want   string
	}{
		{"", nil, "unknown"},
		{"", built(debug.BuildSetting{Key: "vcs.modified", Value: "true"}), "unknown"},
		{"", built(revision), "0123456789abcdef"},
		{"", built(revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"}), "0123456789abcdef-dirty"},
		{"feed", built(revision), "feed"},
	} {
		if got := commitOf(tc.linked, tc.build); got != tc.want {
			t.Errorf("linked %q, built %v: %q, want %q", tc.linked, tc.build, got, tc.want)
		}
	}
}

// TestString: people read the first 12 digits of a commit.
func TestString(t *testing.T) {
	i := Info{Version: "v1", Commit: "0123456789abcdef0123-dirty", Go: "go1.26", Platform: "linux/amd64"}
	if got, want := i.String(), "v1 (commit 0123456789ab-dirty, go1.26, linux/amd64)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Get().String(); !strings.HasPrefix(got, "dev (commit ") {
		t.Errorf("this test says %q", got)
	}
}
