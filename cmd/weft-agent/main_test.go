package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"k8s.io/klog/v2"

	"github.com/weft-cni/weft/pkg/config"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weft-agent": main})
}

// TestScripts runs testdata/*.txtar: what a person types and what the agent answers.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata"})
}

// TestOneLogger: client-go's messages are JSON when the agent's are, and heed its level.
func TestOneLogger(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before); klog.ClearLogger() })
	var out bytes.Buffer
	level := new(slog.LevelVar)
	newLogger(&out, config.LogJSON, level).Info("of the agent")
	klog.ErrorS(errors.New("forbidden"), "Failed to watch", "resource", "pods")
	klog.Info("of client-go")
	level.Set(slog.LevelError)
	klog.Info("below the level")
	klog.Flush()
	var got []string
	for line := range strings.Lines(out.String()) {
		var entry struct{ Level, Msg, Err, Resource string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		got = append(got, strings.TrimSpace(strings.Join([]string{entry.Level, entry.Msg, entry.Err, entry.Resource}, " ")))
	}
	want := []string{"INFO of the agent", "ERROR Failed to watch forbidden pods", "INFO of client-go"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("logged %q, want %q", got, want)
	}
}
