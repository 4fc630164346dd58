package anchor

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
)

// block is one block of a PEM file, as far as it could be read.
type block struct {
	label  string // CERTIFICATE
	der    []byte
	fault  Reason // empty: none
	detail string
}

// marker is one end of a block.
type marker struct {
	begin    bool
	label    string // empty: its line is torn
	from, to int
}

const dashes = "-----"

// nextMarker finds the next BEGIN or END at or after from. Unlike encoding/pem it
// need not be alone on its line, so that a BOM, indentation and glued blocks do
// no harm.
func nextMarker(content []byte, from int) (m marker, ok bool) {
	for {
		i := bytes.Index(content[from:], []byte(dashes))
		if i < 0 {
			return marker{}, false
		}
		at := from + i
		rest := content[at+len(dashes):]
		word, is := bytes.CutPrefix(rest, []byte("BEGIN "))
		if m.begin = is; !is {
			word, is = bytes.CutPrefix(rest, []byte("END "))
		}
		if !is {
			from = at + 1
			continue
		}
		m.from, m.to = at, len(content)-len(word)
		line := word[:min(len(word), maxLabel)]
		if end := bytes.IndexAny(line, "\r\n"); end >= 0 {
			line = line[:end]
		}
		if end := bytes.Index(line, []byte(dashes)); end >= 0 {
			m.label = string(bytes.TrimSpace(line[:end]))
			m.to += end + len(dashes)
		}
		return m, true
	}
}

// maxLabel is the longest label of a block that is looked for, with its dashes.
const maxLabel = 64

// hasMarker tells whether a file is PEM at all, be it torn.
func hasMarker(content []byte) bool {
	_, ok := nextMarker(content, 0)
	return ok
}

// blocks reads the blocks of a PEM file, and what is left of torn ones. What is
// between them is a comment, unless it looks like a marker.
func blocks(content []byte) (list []block) {
	var open *marker
	torn := func(detail string) { list = append(list, block{fault: Truncated, detail: detail}) }
	comment := func(text []byte) {
		if nearMarker(text) {
			list = append(list, block{fault: BadPEM, detail: "a line that looks like BEGIN or END, and has not five dashes"})
		}
	}
	at := 0
	for {
		m, ok := nextMarker(content, at)
		if !ok {
			break
		}
		between := content[at:m.from]
		switch {
		case open == nil:
			comment(between)
		case m.begin:
			torn("begins, and does not end before the next begins")
		}
		switch {
		case m.begin:
			open = &m
		case open == nil:
			torn("ends without having begun")
		default:
			list = append(list, decode(*open, m, between))
			open = nil
		}
		at = m.to
	}
	if open != nil {
		torn("begins, and does not end")
	} else {
		comment(content[at:])
	}
	return list
}

// nearMarker tells whether a text has what was meant for a marker: with four
// dashes, or with those of a word processor.
func nearMarker(text []byte) bool {
	upper := bytes.ToUpper(text)
	for _, word := range []string{"BEGIN ", "END "} {
		for _, dash := range []string{"-", "–", "—", "- "} {
			for _, what := range []string{"CERT", "TRUSTED CERT", "X509 CERT"} {
				if bytes.Contains(upper, []byte(dash+word+what)) {
					return true
				}
			}
		}
	}
	return false
}

func decode(begin, end marker, body []byte) block {
	b := block{label: begin.label}
	switch {
	case begin.label == "" || end.label == "":
		b.fault, b.detail = BadPEM, "a torn BEGIN or END line"
		return b
	case begin.label != end.label:
		b.fault, b.detail = BadPEM, "BEGIN and END name different types"
		return b
	}
	// Headers (RFC 1421) are lines with a colon before the content.
	for {
		line, rest, ok := bytes.Cut(body, []byte("\n"))
		if !ok || len(bytes.TrimSpace(line)) > 0 && !bytes.ContainsRune(line, ':') {
			break
		}
		body = rest
	}
	text := bytes.Join(bytes.Fields(body), nil)
	der := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(der, text)
	if err != nil {
		b.fault, b.detail = BadPEM, "its base64 is damaged"
		if bytes.Contains(text, []byte(`\n`)) {
			b.detail = `its lines are joined by a backslash and an n instead of line ends`
		}
		return b
	}
	b.der = der[:n]
	return b
}

// Fingerprints counts the certificates of a PEM bundle by their fingerprint, as
// Go's and OpenSSL's readers find them: what they would pass over (glued blocks,
// blocks with headers, a BOM) does not count. The certificates are not parsed,
// so that a bundle of hundreds is quick to read. key: there is a private key in
// it, in whatever form.
func Fingerprints(bundle []byte) (count map[string]int, key bool) {
	count = make(map[string]int)
	for rest := bundle; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return count, hasKey(bundle)
		}
		if b.Type == "CERTIFICATE" && len(b.Headers) == 0 {
			count[fingerprint(b.Bytes)]++
		}
	}
}
