package audit

import (
	_ "embed" // the rules
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

// The rules are those of gitleaks, as they are: v8.30.1, config/gitleaks.toml,
// MIT licensed, see gitleaks/LICENSE. The file is copied because the package
// that embeds it, config, brings viper, hcl, ini, zerolog and fsnotify along
// for one string: twice as much in the binary as the parser used here, and all
// that in the module graph. For a newer version replace the file, its version
// here and its digest in rules_test.go.
//
//go:embed gitleaks/gitleaks.toml
var gitleaks string

// rule says what one kind of secret looks like.
type rule struct {
	id       string
	regex    func() *regexp.Regexp // compiled when first needed: most never are
	anywhere func() *regexp.Regexp // of an anchored rule: the same, not anchored
	group    int                   // that holds the secret; 0 is the first that matched
	entropy  float64               // that a secret has more of, in bits a character
	allow    []allowance
	generic  bool                     // it knows a secret by the name before it only, and guesses
	assigned bool                     // name, operator, value: the name is the keyword
	anchored bool                     // what it matches begins with the keyword
	wrapped  bool                     // what it matches is distinctive enough to be sought across line breaks
	named    bool                     // no regex: the words of a name and its value decide, see names.go
	check    func(secret string) bool // what else holds, nil for nothing
}

// allowance is what a rule does not mean though it matches.
type allowance struct {
	of    string // what regex is about: the secret, the "match" or its "line"
	regex func() *regexp.Regexp
	stop  func() *keywords
}

// ruleset is all rules with the keywords without which they need no look.
type ruleset struct {
	words    []string
	keywords *keywords
	rules    [][]*rule // by keyword
	global   allowance
}

// file is gitleaks' configuration, as far as it is about text. What is about
// paths and commits is left out.
type file struct {
	Allowlist fileAllowance
	Rules     []struct {
		ID, Regex, Path string
		SecretGroup     int
		Entropy         float64
		Keywords        []string
		Allowlists      []fileAllowance
	}
}

type fileAllowance struct {
	Condition, RegexTarget    string
	Paths, Regexes, Stopwords []string
}

// The parts that most rules of gitleaks are put together from.
const (
	// before is what may stand before a name. It is not searched for, which
	// would be slow: it can be read off when a match is found.
	before = `[\w.-]{0,50}?`
	quotes = `[\s'"]{0,3}`
	values = `[\x60'"\s=]{0,5}`
	// ends is what follows a secret.
	ends = `(?:[\x60'"\s;]|\\[nr]|$)`
	// lines is what stands between curl and its flag, up to the last that fits.
	lines = `(?:.*|.*(?:[\r\n]{1,2}.*){1,5})`
)

// inText adapts them: in JSON that stands in a string, quotes are escaped, and
// in a log line or a URL a secret is followed by more than in source code. Of
// several flags the first is curl's own.
var inText = strings.NewReplacer(lines, strings.ReplaceAll(lines, ".*", ".*?"), quotes, `[\s'"\\]{0,5}`, values, `[\x60'"\s=\\]{0,8}`, ends, `(?:[\x60'"\s;,&(){}\[\]<>|\\]|$)`)

// rules are read when first needed.
var rules = sync.OnceValue(func() *ruleset { return must(readRules(gitleaks)) })

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the embedded file is fixed, and tested
	}
	return v
}

func readRules(text string) (*ruleset, error) {
	var f file
	if err := toml.Unmarshal([]byte(text), &f); err != nil {
		return nil, fmt.Errorf("reading gitleaks' rules: %w", err)
	}
	set := &ruleset{global: f.Allowlist.compile()}
	var words []string
	add := func(r *rule, keys []string) {
		for _, key := range keys {
			i := slices.Index(words, key)
			if i < 0 {
				i = len(words)
				words, set.rules = append(words, key), append(set.rules, nil)
			}
			set.rules[i] = append(set.rules[i], r)
		}
	}
	for _, from := range f.Rules {
		if from.Regex == "" || from.Path != "" || len(from.Keywords) == 0 || from.ID == "private-key" {
			continue // about files of a certain name, which a text has not; for PEM see privateKeys
		}
		r := &rule{id: from.ID, group: from.SecretGroup, entropy: from.Entropy, generic: from.ID == "generic-api-key"}
		keys := slices.Clone(from.Keywords)
		for i := range keys {
			keys[i] = strings.ToLower(keys[i])
		}
		if err := r.read(from.Regex, keys); err != nil {
			return nil, fmt.Errorf("reading gitleaks' rule %s: %w", from.ID, err)
		}
		for _, a := range from.Allowlists {
			if strings.ToUpper(a.Condition) != "AND" || len(a.Paths) == 0 {
				r.allow = append(r.allow, a.compile())
			}
		}
		add(r, keys)
	}
	for _, e := range extras {
		r := &rule{id: e.id, group: 1, check: e.check}
		if err := r.read(e.regex, e.keywords); err != nil {
			return nil, fmt.Errorf("reading rule %s: %w", e.id, err)
		}
		r.wrapped = r.wrapped && e.wrapped
		add(r, e.keywords)
	}
	add(&rule{id: "name", named: true}, nameKeywords)
	set.words, set.keywords = words, newKeywords(words)
	return set, nil
}

// read works out how a rule can be looked for.
func (r *rule) read(regex string, keys []string) error {
	begins, named := strings.CutPrefix(regex, "(?i)"+before)
	if named {
		regex = "(?i)" + begins
	} else if begins, named = strings.CutPrefix(regex, before+"(?i:"+before); named {
		regex = "(?i:" + begins
	}
	tree, err := syntax.Parse(regex, syntax.Perl)
	if err != nil {
		return err
	}
	starts, _ := prefixes(tree)
	r.anchored = len(starts) > 0 && !open(tree) && !slices.ContainsFunc(starts, func(start string) bool {
		return !slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(start, key) })
	})
	r.assigned = named && r.anchored && tree.Op != syntax.OpAlternate // else it is also a token on its own
	r.wrapped = r.anchored && !r.assigned
	regex = inText.Replace(regex)
	if r.anchored {
		r.anywhere = lazily(regex)
		regex = `\A(?s:.?)(?:` + regex + `)` // with the byte before it, for \b
	}
	r.regex = lazily(regex)
	return nil
}

// open reports whether a regular expression goes on through any text. Each
// keyword would look through all that the one before it did.
func open(re *syntax.Regexp) bool {
	endless := re.Op == syntax.OpStar || re.Op == syntax.OpPlus || re.Op == syntax.OpRepeat && re.Max < 0
	if endless && (re.Sub[0].Op == syntax.OpAnyChar || re.Sub[0].Op == syntax.OpAnyCharNotNL) {
		return true
	}
	return slices.ContainsFunc(re.Sub, open)
}

func lazily(regex string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(regex) })
}

func (a fileAllowance) compile() allowance {
	out := allowance{of: a.RegexTarget}
	if len(a.Regexes) > 0 {
		out.regex = lazily("(?:" + strings.Join(a.Regexes, ")|(?:") + ")")
	}
	if words := a.Stopwords; len(words) > 0 {
		out.stop = sync.OnceValue(func() *keywords {
			lower := make([]string, len(words))
			for i, w := range words {
				lower[i] = strings.ToLower(w)
			}
			return newKeywords(lower)
		})
	}
	return out
}

// allows reports whether a finding is none. text is what the allowance is of.
func (a *allowance) allows(secret, text string) bool {
	return a.stop != nil && a.stop().has(secret) || a.regex != nil && a.regex().MatchString(text)
}

// prefixes lists in lower case what texts that match begin with, as far as that
// is a short list, and whether these are the texts as a whole.
func prefixes(re *syntax.Regexp) (starts []string, whole bool) {
	const many = 64
	switch re.Op {
	case syntax.OpLiteral:
		return []string{strings.ToLower(string(re.Rune))}, true
	case syntax.OpCapture:
		return prefixes(re.Sub[0])
	case syntax.OpRepeat, syntax.OpPlus:
		if re.Op == syntax.OpPlus || re.Min > 0 {
			starts, _ = prefixes(re.Sub[0])
			return starts, false
		}
	case syntax.OpQuest:
		starts, whole = prefixes(re.Sub[0])
		return append(starts, ""), whole
	case syntax.OpEmptyMatch, syntax.OpWordBoundary:
		return []string{""}, true
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			if re.Rune[i+1]-re.Rune[i] > 4 || len(starts) > 8 {
				return []string{""}, false
			}
			for c := re.Rune[i]; c <= re.Rune[i+1]; c++ {
				if c < utf8.RuneSelf { // others are what (?i) adds, such as the Kelvin sign to k
					starts = append(starts, strings.ToLower(string(c)))
				}
			}
		}
		return starts, len(starts) > 0
	case syntax.OpAlternate:
		whole = true
		for _, sub := range re.Sub {
			more, all := prefixes(sub)
			starts, whole = append(starts, more...), whole && all
		}
		return starts, whole && len(starts) <= many
	case syntax.OpConcat:
		starts = []string{""}
		for _, sub := range re.Sub {
			more, all := prefixes(sub)
			if len(starts)*len(more) > many {
				return starts, false
			}
			var joined []string
			for _, start := range starts {
				for _, m := range more {
					joined = append(joined, start+m)
				}
			}
			if starts = joined; !all {
				return starts, false
			}
		}
		return starts, true
	}
	return []string{""}, false
}

// entropy is Shannon's, in bits a byte.
func entropy(s string) float64 {
	var count [256]int
	for i := range len(s) {
		count[s[i]]++
	}
	var bits float64
	for _, n := range count {
		if n > 0 {
			p := float64(n) / float64(len(s))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}
