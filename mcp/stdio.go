package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// ServeStdio serves the one caller on stdin and stdout until stdin ends. What was
// asked for and is not answered then is not answered any more; a change that has
// started goes on in the gate.
func (s *Server) ServeStdio(ctx context.Context, in io.Reader, out io.Writer) error {
	served := server.NewStdioServer(s.mcp)
	served.SetErrorLogger(slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn))
	writer := &oneAtATime{out: out}
	return served.Listen(ctx, &checked{s: s, ctx: ctx, in: bufio.NewReader(in), out: writer}, writer)
}

// oneAtATime keeps apart what mcp-go and the check write, a line each time.
type oneAtATime struct {
	mu  sync.Mutex
	out io.Writer
}

func (w *oneAtATime) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(p)
}

// checked hands on the lines that pass what the guard checks of a body, and answers
// the others: mcp-go reads a line however long it is.
type checked struct {
	s    *Server
	ctx  context.Context
	in   *bufio.Reader
	out  io.Writer
	line []byte // what is to be handed on
}

func (c *checked) Read(p []byte) (int, error) {
	for len(c.line) == 0 {
		line, err := readLine(c.in)
		if err != nil && !errors.Is(err, errTooLarge) {
			return 0, err
		}
		if err == nil && len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var m message
		if err == nil {
			m, err = parseMessage(http.MethodPost, line)
		}
		if err == nil && m.Method != string(mcpgo.MethodToolsCall) && len(line) > maxOther {
			err = errOtherTooLarge
		}
		if err != nil {
			if err := c.refuse(m, err); err != nil {
				return 0, err
			}
			continue
		}
		c.line = line
	}
	n := copy(p, c.line)
	c.line = c.line[n:]
	return n, nil
}

func (c *checked) refuse(m message, why error) error {
	if caller, err := c.s.caller(c.ctx); err == nil { // else that is on record
		c.s.Gate.Refused(caller.principal, caller.source, why)
	}
	return writeRefusal(c.out, m.ID, why.Error())
}

// writeRefusal answers a message with a JSON-RPC error.
func writeRefusal(w io.Writer, id json.RawMessage, text string) error {
	if id == nil {
		id = json.RawMessage("null")
	}
	return json.NewEncoder(w).Encode(map[string]any{
		"jsonrpc": "2.0", "id": id, "error": map[string]any{"code": mcpgo.INVALID_REQUEST, "message": text},
	})
}

// readLine reads up to the end of a line. Of one that is larger than maxBody it keeps
// nothing, and reads on to the next. A line without an end is none.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	large := false
	for {
		part, err := in.ReadSlice('\n')
		if large = large || len(line)+len(part) > maxBody; large {
			line = nil
		} else {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err == nil && large:
			return nil, errTooLarge
		default:
			return line, err
		}
	}
}
