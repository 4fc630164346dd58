package anchor

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// Limits of a directory: visible files, and all its entries.
const (
	maxFiles   = 100
	maxEntries = 1000
)

// source is what one directory says, together with what it said before.
type source struct {
	taken    map[string][]Anchor // by file name
	refused  []Refusal
	warnings []Refusal
	broken   *Refusal
}

// readSource reads a directory, and applies the rules that Read explains.
func readSource(dir string, r rules, memory map[string][]string) source {
	before := recall(dir, r, memory)
	files, err := readDir(dir)
	if err != nil {
		return before.keep(dir, r, classify(err), err.Error())
	}
	if len(files) == 0 {
		return before.keep(dir, r, Empty, "no files in it")
	}
	s := source{taken: make(map[string][]Anchor)}
	certs := make(map[string]bool)
	var partly, demoted []string
	tooMany := false
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		p := parsed{partly: true, refused: []Refusal{{path, f.reason, f.detail}}}
		if f.reason == "" {
			p = parse(path, f.content, r, before.known(f.name))
		}
		s.refused = append(s.refused, p.refused...)
		maps.Copy(certs, p.certs)
		tooMany = tooMany || len(certs) > maxCerts || slices.ContainsFunc(p.refused, func(r Refusal) bool { return r.Reason == TooMany })
		if len(p.anchors) > 0 {
			s.taken[f.name] = p.anchors
		}
		switch {
		case p.partly:
			partly = append(partly, f.name)
		case len(p.anchors) > 0 && !slices.ContainsFunc(p.anchors, func(a Anchor) bool { return !a.Leaf }):
			demoted = append(demoted, f.name)
		}
	}
	refused := s.refused
	if len(s.taken) == 0 && !tooMany {
		s = before.keep(dir, r, NoAnchor, fmt.Sprintf("nothing in %d files can be taken", len(files)))
		s.refused = append(refused, s.refused...)
		return s
	}
	for _, name := range partly {
		s.remember(filepath.Join(dir, name), name, before.taken[name], r)
	}
	for _, name := range demoted {
		cas := slices.DeleteFunc(slices.Clone(before.taken[name]), func(a Anchor) bool { return a.Leaf })
		s.remember(filepath.Join(dir, name), name, cas, r)
	}
	// With what stays, a source would grow from one broken reading to the next.
	if tooMany || s.count() > maxCerts {
		s = before.keep(dir, r, TooMany, fmt.Sprintf("more than %d certificates, with those that it gave before: a public bundle?", maxCerts))
		s.refused = append(refused, s.refused...)
	}
	return s
}

// recall is what a directory gave before, as far as it may still be taken: all
// is judged again, except for the time.
func recall(dir string, r rules, memory map[string][]string) source {
	s := source{taken: make(map[string][]Anchor)}
	for name, list := range memory {
		known := make(map[string]bool)
		for _, text := range list {
			if b, _ := pem.Decode([]byte(text)); b != nil {
				known[fingerprint(b.Bytes)] = true
			}
		}
		p := parse(filepath.Join(dir, name), []byte(strings.Join(list, "")), r, known)
		if len(p.anchors) > 0 {
			s.taken[name] = p.anchors
		}
	}
	return s
}

func (s source) known(name string) map[string]bool {
	known := make(map[string]bool)
	for _, a := range s.taken[name] {
		known[a.Fingerprint] = true
	}
	return known
}

// keep is a broken source that gives what it gave before.
func (s source) keep(dir string, r rules, reason Reason, detail string) source {
	kept := source{taken: make(map[string][]Anchor), broken: &Refusal{dir, reason, detail}}
	for _, name := range sortedKeys(s.taken) {
		kept.remember(filepath.Join(dir, name), name, s.taken[name], r)
	}
	return kept
}

// remember adds what a file gave before to what it gives now, and says so.
func (s *source) remember(path, name string, before []Anchor, r rules) {
	now := s.known(name)
	for _, a := range before {
		if now[a.Fingerprint] {
			continue
		}
		at := a.Fingerprint[:16]
		s.taken[name] = append(s.taken[name], a)
		s.warnings = append(s.warnings, Refusal{path, Remembered, at + ": stays, because its source broke"})
		if reason, detail := r.clock(a.Cert); reason != "" {
			s.refused = append(s.refused, Refusal{path, reason, at + ": " + detail + "; it was valid before, and stays"})
		}
	}
}

func (s source) count() int {
	all := make(map[string]bool)
	for _, list := range s.taken {
		for _, a := range list {
			all[a.Fingerprint] = true
		}
	}
	return len(all)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// file is one entry of a directory: its content, or why there is none.
type file struct {
	name    string
	content []byte
	reason  Reason
	detail  string
}

var errTooManyFiles = errors.New("too many files")

// readDir reads the files of a directory, but not those of its subdirectories,
// nor hidden ones: in a mounted Secret the files are links to a hidden directory
// that is exchanged as a whole. If that happens meanwhile, all is read again.
func readDir(dir string) ([]file, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for try := 1; ; try++ {
		before, _ := root.Readlink(dataLink)
		files, err := readFiles(root)
		if after, _ := root.Readlink(dataLink); err != nil || after == before || try == 3 {
			return files, err
		}
	}
}

// dataLink is the link that the kubelet exchanges.
const dataLink = "..data"

func readFiles(root *os.Root) ([]file, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	all := len(names)
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, ".") })
	if all == maxEntries || len(names) > maxFiles {
		return nil, fmt.Errorf("%w: more than %d", errTooManyFiles, maxFiles)
	}
	slices.Sort(names)
	files := make([]file, len(names))
	left := maxSource
	for i, name := range names {
		files[i] = readFile(root, name, left)
		left -= len(files[i].content)
	}
	return files, nil
}

// readFile reads a file of a source of which no more than left bytes may be read.
func readFile(root *os.Root, name string, left int) file {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return file{name: strconv.QuoteToASCII(name), reason: BadName, detail: "its name is no printable text"}
	}
	content, err := readRegular(root, name)
	if err != nil {
		reason := classify(err)
		if reason == Missing || reason == NotDirectory { // it was in the list, so it is a link
			reason = DanglingLink
		}
		return file{name: name, reason: reason, detail: err.Error()}
	}
	if len(content) > left {
		return file{name: name, reason: TooLarge, detail: fmt.Sprintf("the files before it and this are more than %d bytes", maxSource)}
	}
	return file{name: name, content: content}
}

var errNotRegular = errors.New("not a regular file")

// readRegular reads one byte more than is allowed at most.
func readRegular(root *os.Root, name string) ([]byte, error) {
	// Looked at first, because to open a device may do something.
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %v", errNotRegular, info.Mode().Type())
	}
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// openRegular never waits for the other end of what has become a FIFO since it
// was looked at.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %v", errNotRegular, info.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// classify names what the kernel or os.Root said.
func classify(err error) Reason {
	var errno syscall.Errno
	switch {
	case errors.Is(err, errTooManyFiles):
		return TooManyFiles
	case errors.Is(err, errNotRegular):
		return NotRegular
	case errors.Is(err, fs.ErrNotExist):
		return Missing
	case errors.Is(err, syscall.ENOTDIR):
		return NotDirectory
	case errors.As(err, &errno):
		return Unreadable
	}
	// os.Root says this without a number, and nothing else is left.
	return Outside
}
