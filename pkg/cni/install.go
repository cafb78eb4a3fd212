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

// ConfListName is the file that the runtime finds in its configuration directory; the runtime takes the first by name.
const ConfListName = "10-weft.conflist"

// ConfList renders the network configuration list. It is written in CNI 1.0.0, the newest that containerd 1.6 knows;
// runtimes that read cniVersions use 1.1.0 and with it STATUS and GC. socket is mentioned only when it is not the default.
func ConfList(socket string) ([]byte, error) { return confList(socket, foreignConf{}) }

type object = map[string]any

// ourPlugins are the types of the plugins that are the agent's in the list.
var ourPlugins = []string{"weft-cni", "portmap", "bandwidth"}

// foreignConf is what others wrote into our list.
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

// WriteConfList puts the configuration in place: from then on the runtime sends pods to us. The agent calls it when it
// is ready to serve. The file appears complete or not at all, and is left untouched when it is in sync. What others
// appended is kept (see docs/cni.md); a file that cannot be read as our list is replaced, and the log says so.
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

// readForeign returns what others wrote into the list of that path.
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
		kind, named := plugin["type"].(string)
		if !ok || !named || kind == "" {
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

// InstallBinaries copies every file of a directory into the node's directory of CNI plugins and returns the names of
// those that it had to write. A binary that is the same already is left untouched; one that runs meanwhile keeps running.
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

// replaceFile makes a file have this content and mode, atomically, and tells whether it had to.
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
		// The node may lose power; a half-written plugin would be there for ever.
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), path)
}
