package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/weft-cni/weft/pkg/cni/wire"
)

// ConfListName is the file in the runtime's configuration directory; the runtime uses the first file by name.
const ConfListName = "10-weft.conflist"

// ConfList renders the network configuration list in CNI 1.0.0, the newest version that containerd 1.6 supports.
// Runtimes that read cniVersions use 1.1.0 with STATUS and GC. The socket is left out when it is the default.
func ConfList(socket string) ([]byte, error) { return confList(socket, foreignConf{}) }

type object = map[string]any

// ourPlugins are the plugin types in the list that the agent owns.
var ourPlugins = []string{"weft-cni", "portmap", "bandwidth"}

// foreignConf holds the plugins and keys of the list that other programs wrote.
type foreignConf struct {
	plugins []object
	keys    object // of the list
}

func confList(socket string, foreign foreignConf) ([]byte, error) {
	weft := object{"type": "weft-cni", "capabilities": object{"bandwidth": true}}
	if socket != "" && socket != wire.DefaultSocket {
		weft["socket"] = socket
	}
	list := object{}
	maps.Copy(list, foreign.keys)
	maps.Copy(list, object{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"1.0.0", "1.1.0"},
		"name":        NetworkName,
		"plugins": append([]object{
			weft,
			{"type": "portmap", "snat": true, "capabilities": object{"portMappings": true}},
			{"type": "bandwidth", "capabilities": object{"bandwidth": true}},
		}, foreign.plugins...),
	})
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render the CNI configuration: %w", err)
	}
	return append(b, '\n'), nil
}

// WriteConfList installs the network configuration: from then on the runtime sends pods to Weft. The agent calls it
// when it is ready to serve. The write is atomic, and skipped when the file is up to date. Plugins and keys that other
// programs added are kept (see docs/cni.md). A file that is not a valid list of Weft is replaced, with a warning in the
// log.
func WriteConfList(dir, socket string, log *slog.Logger) error {
	path := filepath.Join(dir, ConfListName)
	foreign, err := readForeign(path)
	if err != nil {
		log.Warn("the CNI configuration is invalid; rewriting it", "file", path, "err", err)
	}
	b, err := confList(socket, foreign)
	if err != nil {
		return err
	}
	if _, err := replaceFile(path, b, 0o644); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	return nil
}

// Preceding returns the other programs' files that the container runtime prefers to Weft's: those of the directory that
// are network configurations and come first by name (libcni, ConfFiles). A missing directory has none.
func Preceding(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries { // sorted by name
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) && e.Name() < ConfListName {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// readForeign returns the plugins and keys that other programs wrote into the list.
func readForeign(path string) (foreign foreignConf, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return foreign, nil
	}
	if err != nil {
		return foreign, err
	}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber() // or large numbers would be rounded
	list := object{}
	if err := decoder.Decode(&list); err != nil {
		return foreign, err
	}
	if list["name"] != NetworkName {
		return foreign, fmt.Errorf("network name %v, want %q", list["name"], NetworkName)
	}
	plugins, ok := list["plugins"].([]any)
	if !ok {
		return foreign, errors.New("no list of plugins")
	}
	for i, p := range plugins {
		plugin, ok := p.(object)
		kind, typed := plugin["type"].(string)
		if !ok || !typed || kind == "" {
			return foreignConf{}, fmt.Errorf("plugin %d has no type", i)
		}
		if !slices.Contains(ourPlugins, kind) {
			foreign.plugins = append(foreign.plugins, plugin)
		}
	}
	delete(list, "plugins")
	foreign.keys = list
	return foreign, nil
}

// InstallBinaries copies all files of a directory into the node's directory of CNI plugins and returns the names of
// those that it wrote. It does not write a binary that is up to date; a running binary is replaced and keeps running.
func InstallBinaries(from, to string) (written []string, err error) {
	entries, err := os.ReadDir(from)
	if err != nil {
		return nil, fmt.Errorf("install CNI plugins: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return written, fmt.Errorf("install CNI plugin: %w", err)
		}
		changed, err := replaceFile(filepath.Join(to, e.Name()), b, 0o755)
		if err != nil {
			return written, fmt.Errorf("install CNI plugin: %w", err)
		}
		if changed {
			written = append(written, e.Name())
		}
	}
	return written, nil
}

// replaceFile writes content and mode atomically, and reports whether it had to. It does not write a file that is up to
// date.
func replaceFile(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode && info.Size() == int64(len(content)) {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	// A hidden name without an extension: runtimes read every .conflist and .conf of the directory.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".weft-*")
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		// Sync: after a power loss, a half-written plugin would never be replaced.
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), path)
}
