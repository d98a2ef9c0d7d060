"""Virtual context management (MemGPT, arXiv 2310.08560), with a learned memory as the recursive summary.

The mechanism is the paper's: a bounded main context, external stores, a queue manager that warns and evicts, a function executor,
paging. The controller is not: the paper's is a large chat model, here it is a policy (a script, a heuristic, a small model of this
library, or any function from text to text). None of the paper's numbers for chat are claimed.

Main context; the shares are tokens of `ContextConfig.budget`:

    region    content                                             written by            share
    pinned    first tokens of every context, and a prefix         nobody                fixed
    system    the task                                            caller, once          fixed
    working   named blocks, each with a limit                     calls of the policy   the sum of the limits
    summary   a carry of the model: memory, state, fast weights   flushes only          its memory tokens
    fifo      messages, calls with their results, oldest first    events                the rest
    reserve   room for a reply and one page of results            nobody                max_new + page_tokens

The summary is the carry that every context begins with: summary' = read(summary, evicted tokens), then the open segment is
closed. It costs no text and no call of a language model. Behind it the context is read again from its tokens, so what was evicted
reaches the logits through the summary alone.

Signatures

    config.ContextConfig(budget, ...)                              sizes and fractions, checked
    codec.wrap(role, text) -> bytes                                a token is a byte; control tokens are bytes that UTF-8 never has
    grammar.parse(tokens) -> (Call, ...); grammar.tokens(calls)    the closed grammar; read_text, write_text: the same as text
    automaton.Automaton(left).allowed() -> bool[256]; .push(token) decoding under it gives a well-formed decision, always
    queue.State; queue.apply(state, op) -> State                   everything the host knows; an event is a list of ops
    queue.plan_entry(state, cfg, fixed, row, role, n) -> [op]      flushes and entries of a message of n tokens
    store.Store(path)                                              one SQLite file: messages, passages, blocks, events, snapshots
    search.page(store, Query, cursor, number, size)                text, words, vector, hybrid, date; within one conversation
    device.Device                                                  begin, summarise, context, read, fork, logits, save, load
    session_device.SessionDevice(model, params)                    the same through `memtok_jax.inference`
    policies: decide(view) -> [Call]                               Scripted, Heuristic, Callable; learned.LearnedPolicy
    conversation.Conversation(database, ...)                       say, remember, search, budget, save

State and events. A change is one transaction: rows, and one event that holds the ops in JSON. It is committed before its tokens
reach the model. State and model follow the ops, live and after a restart alike (`queue.apply`, `main_context.follow`), so a killed
process goes on with the same next logits, and a replay never asks a policy again.
"""
