package audit

// keywords finds every occurrence of a fixed set of words in a text in one
// pass, whatever their case (Aho-Corasick). The common libraries keep 256 wide
// rows, four kilobytes a state, nine megabytes for gitleaks' stop words; rows
// here are as wide as there are different bytes in the words.
type keywords struct {
	column [256]uint8 // of a byte; 0 is that of all bytes in no word
	width  int
	next   []uint16 // state*width + column to state; 0 is the start
	depth  []uint8  // of a state: how many bytes of a word were read
	words  [][]word // that end in a state
}

type word struct{ index, size int }

// newKeywords takes words in lower case, of ASCII, shorter than 256 bytes.
func newKeywords(words []string) *keywords {
	k := &keywords{width: 1}
	for _, w := range words {
		for i := range len(w) {
			if c := w[i]; k.column[c] == 0 {
				k.column[c] = uint8(k.width)
				k.width++
			}
		}
	}
	for c := 'a'; c <= 'z'; c++ {
		k.column[c-'a'+'A'] = k.column[c]
	}
	k.grow(0)
	for index, w := range words {
		state := 0
		for i := range len(w) {
			at := state*k.width + int(k.column[w[i]])
			if k.next[at] == 0 {
				k.next[at] = k.grow(i + 1)
			}
			state = int(k.next[at])
		}
		k.words[state] = append(k.words[state], word{index, len(w)})
	}
	k.link()
	return k
}

func (k *keywords) grow(depth int) uint16 {
	k.next = append(k.next, make([]uint16, k.width)...)
	k.depth = append(k.depth, uint8(depth))
	k.words = append(k.words, nil)
	return uint16(len(k.depth) - 1)
}

// link fills in where to go on when a word breaks off: to the longest other
// beginning of a word that the text read so far ends with.
func (k *keywords) link() {
	fail := make([]int, len(k.depth))
	for queue := []int{0}; len(queue) > 0; queue = queue[1:] {
		state := queue[0]
		for c := range k.width {
			child, other := &k.next[state*k.width+c], int(k.next[fail[state]*k.width+c])
			if *child == 0 {
				*child = uint16(other)
				continue
			}
			if state != 0 {
				fail[*child] = other
			}
			k.words[*child] = append(k.words[*child], k.words[fail[*child]]...)
			queue = append(queue, int(*child))
		}
	}
}

// each calls found with every occurrence: which word, and where it begins. A
// word with a line break in it, as log collectors wrap, is found as well.
func (k *keywords) each(s string, found func(index, at int)) {
	state := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c == '\n' || c == '\r' || c == '\\') && k.depth[state] > 0 {
			if n := breakAt(s, i); n > 0 {
				k.wrapped(s, i, i+n, state, found)
			}
		}
		state = int(k.next[state*k.width+int(k.column[c])])
		for _, w := range k.words[state] {
			found(w.index, i+1-w.size)
		}
	}
}

// wrapped goes on behind a line break as though it were not there, as long as
// what is being read began before it.
func (k *keywords) wrapped(s string, before, behind, state int, found func(index, at int)) {
	for i := behind; i < len(s); i++ {
		state = int(k.next[state*k.width+int(k.column[s[i]])])
		read := i + 1 - behind
		if int(k.depth[state]) <= read {
			return
		}
		for _, w := range k.words[state] {
			if w.size > read {
				found(w.index, before-(w.size-read))
			}
		}
	}
}

// has reports whether any of the words occurs.
func (k *keywords) has(s string) bool {
	state := 0
	for i := range len(s) {
		state = int(k.next[state*k.width+int(k.column[s[i]])])
		if k.words[state] != nil {
			return true
		}
	}
	return false
}

// breakAt is the length of a line break at a position, with the indent of the
// next line, 0 where there is none. Within JSON it is written \n.
func breakAt(s string, at int) int {
	if at >= len(s) || s[at] != '\n' && s[at] != '\r' && s[at] != '\\' {
		return 0
	}
	const longest = 128 // with the indent
	s = s[:min(len(s), at+longest)]
	i := at
	for {
		switch {
		case i < len(s) && (s[i] == '\n' || s[i] == '\r'):
			i++
		case i+1 < len(s) && s[i] == '\\' && (s[i+1] == 'n' || s[i+1] == 'r'):
			i += 2
		default:
			if i == at {
				return 0
			}
			for i < len(s) && (s[i] == ' ' || s[i] == '\t') {
				i++
			}
			return i - at
		}
	}
}
